import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from disentangled_mil.tasks import Classification


def test_classes_and_balanced_weights_come_from_the_labels():
    task = Classification.fit(np.array(["b", "a", "b", "b"]))
    assert repr(task) == "Classification(classes=('a', 'b'), class_weight=[2.0, 0.667])"
    assert task.outputs == 2
    torch.testing.assert_close(task.class_weight, torch.tensor([4 / 2, 4 / 6]))
    assert task.class_weight[task.target(["b", "a", "b", "b"])].mean() == pytest.approx(1)


def test_given_classes_keep_their_order_and_may_be_absent_without_balance():
    task = Classification.fit(["a", "b"], classes=["c", "b", "a"], balanced=False)
    assert task.class_weight is None
    assert task.target(["a", "c"]).tolist() == [2, 0]
    assert task.target([]).shape == (0,)


def test_unweighted_loss_and_its_gradient_are_the_cross_entropy(generator):
    task = Classification(["a", "b", "c"])
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 1, 1])
    torch.testing.assert_close(task.loss(logits, target), F.cross_entropy(logits, target))
    assert gradcheck(lambda x: task.loss(x, target), logits)


def test_class_weights_count_in_a_batch_of_one_and_add_up_over_batches(generator):
    task = Classification(["a", "b"], class_weight=torch.tensor([0.5, 3.0]))
    logits, target = torch.randn(2, 2, generator=generator), torch.tensor([0, 1])
    alone = [task.loss(logits[i : i + 1], target[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(alone[1], 3 * F.cross_entropy(logits[1:], target[1:]))
    torch.testing.assert_close(task.loss(logits, target), torch.stack(alone).mean())


def test_class_confidence_is_the_sum_of_true_class_probabilities():
    task = Classification(["a", "b"])
    logits = {
        "tumor": torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log().requires_grad_(),
        "tme": torch.zeros(2, 2),
    }
    confidence = task.confidence(logits, torch.tensor([1, 0]))
    assert list(confidence) == ["tumor", "tme"]
    torch.testing.assert_close(confidence["tumor"], torch.tensor(1.3))
    torch.testing.assert_close(confidence["tme"], torch.tensor(1.0))
    assert not confidence["tumor"].requires_grad


def test_names_come_from_any_iterable():
    assert Classification(name for name in "ab").classes == ("a", "b")
    task = Classification.fit(dict.fromkeys(["b", "a"]).keys())
    assert task.target(iter(["a", "b"])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, r"classes must name at least two classes, got \[\]"),
        ((["a", " "],), {}, r"classes must not be empty, because an empty cell has no value, got \('a', ' '\)"),
        ((["a", "b", "a"],), {}, r"classes must be distinct, got 'a' more than once"),
        ((["a", "b"],), {"class_weight": torch.ones(3)}, r"class_weight must have shape \[K\] = \[2\], got \[3\]"),
        (
            (["a", "b"],),
            {"class_weight": torch.tensor([1.0, -1.0])},
            r"class_weight must be finite and not negative, got \[1\.0, -1\.0\]",
        ),
    ],
)
def test_classification_refuses_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Classification(*arguments, **options)


def test_classification_refuses_labels_and_logits_that_do_not_fit():
    task = Classification(["a", "b"])
    with pytest.raises(ValueError, match=r"labels must be among \['a', 'b'\], got 'c' at position 1"):
        task.target(["a", "c"])
    with pytest.raises(TypeError, match=r"labels must be a sequence of strings, got nan at position 1"):
        Classification.fit(["a", math.nan])
    with pytest.raises(ValueError, match=r"labels must be among \['a', 'c'\], got 'b' at position 0"):
        Classification.fit(["b"], classes=["a", "c"])
    with pytest.raises(ValueError, match=r"labels must hold every class to balance them, got no 'b'"):
        Classification.fit(["a"], classes=["a", "b"])
    with pytest.raises(TypeError, match=r"labels must be a sequence of strings, got the string 'ab'"):
        task.target("ab")
    with pytest.raises(TypeError, match=r"classes must be a sequence of strings, got the string 'ab'"):
        Classification("ab")
    with pytest.raises(ValueError, match=r"logits must have shape \[B, K\] = \[B, 2\], got \[1, 3\]"):
        task.loss(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"target must have shape \[B\] = \[1\], got \[2\]"):
        task.loss(torch.zeros(1, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"logits must hold at least one sample, got shape \[0, 2\]"):
        task.loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"subspace_logits\['tme'\] must have shape \[B, K\] = \[B, 2\], got \[1, 3\]"):
        task.confidence({"tme": torch.zeros(1, 3)}, torch.tensor([0]))


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("label", [-100, -1, 3, 2**62, -(2**63)])
def test_no_class_index_is_ignored(label, weight):
    task, logits, target = Classification(["a", "b", "c"], class_weight=weight), torch.zeros(2, 3), [0, label]
    message = rf"target must be a class index from 0 to 2, got {label} at position 1"
    with pytest.raises(ValueError, match=message):
        task.loss(logits, torch.tensor(target))
    with pytest.raises(ValueError, match=message):
        task.confidence({"tumor": logits}, torch.tensor(target))
    compiled = torch.compile(task.loss, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="out of bounds"):
        compiled(logits, torch.tensor(target))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.uint16])
def test_class_indices_of_any_integer_type_count(dtype, generator):
    task = Classification(["a", "b", "c"], class_weight=torch.tensor([1.0, 2.0, 0.5]))
    logits, target = torch.randn(2, 3, generator=generator), torch.tensor([0, 2])
    assert torch.equal(task.loss(logits, target.to(dtype)), task.loss(logits, target))
    assert task.confidence({"tumor": logits}, target.to(dtype)) == task.confidence({"tumor": logits}, target)


@pytest.mark.parametrize("target", [torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_labels_that_are_no_integers_are_refused(target):
    with pytest.raises(TypeError, match=rf"target must be an integer tensor, got {target.dtype}"):
        Classification(["a", "b"]).loss(torch.zeros(2, 2), target)
    with pytest.raises(TypeError, match=rf"target must be an integer tensor, got {target.dtype}"):
        Classification(["a", "b"]).confidence({"tumor": torch.zeros(2, 2)}, target)
