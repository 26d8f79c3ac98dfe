"""The linear model: against plain arithmetic, with missing values, and as a part of student and teacher."""

import pytest
import torch

from disentangled_mil import Bag, LinearModel, Student, Teacher, TokenSet
from disentangled_mil.models import patch_statistics
from disentangled_mil.models.linear_model import named_vectors

SMALL = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4}
GENES = {"tumor": 5, "tme": 7}


@pytest.fixture
def bag(generator):
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    return Bag(torch.randn(3, 6, 4, generator=generator), TokenSet(mask))


@pytest.fixture
def model(generator):
    model = LinearModel({"a": 4, "b": 2}, 3)
    for values in model.state_dict().values():
        values.copy_(torch.randn(values.shape, generator=generator))
    return model


def test_logits_are_the_sum_of_centered_vectors_times_weights(model, generator):
    vectors = {"a": torch.randn(5, 4, generator=generator), "b": torch.randn(5, 2, generator=generator)}
    by_hand = model.bias + sum((vectors[n] - model.get_buffer(f"center_{n}")) @ model.weights[n].T for n in vectors)
    torch.testing.assert_close(model(vectors), by_hand)


def test_a_missing_value_counts_as_its_center(model, generator):
    a, b = torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)
    missing = a.clone()
    missing[2, 1] = torch.nan
    filled = a.clone()
    filled[2, 1] = model.get_buffer("center_a")[1]
    torch.testing.assert_close(model({"a": missing, "b": b}), model({"a": filled, "b": b}))


def test_statistics_of_real_patches_ignore_padding(bag):
    bag.patches[1, 2:] = torch.nan
    mean, deviation = patch_statistics(bag)
    for row, count in enumerate((6, 2)):
        torch.testing.assert_close(mean[row], bag.patches[row, :count].mean(0))
        torch.testing.assert_close(deviation[row], bag.patches[row, :count].std(0))


def test_an_empty_bag_has_no_statistics_and_one_patch_has_no_deviation():
    mean, deviation = patch_statistics(Bag(torch.ones(2, 1, 3), TokenSet(torch.tensor([[False], [True]]))))
    assert mean.isnan().all(1).tolist() == [True, False]
    assert deviation.isnan().all()


def test_statistics_of_half_precision_patches_are_taken_in_float32():
    mean, deviation = patch_statistics(
        Bag(torch.tensor([1000.0, 1008.0], dtype=torch.float16).repeat(500)[None, :, None])
    )
    assert mean.dtype == deviation.dtype == torch.float32
    assert mean.item() == 1004.0
    assert deviation.item() == pytest.approx(4.002, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_constant_feature_has_no_deviation(dtype):
    patches = torch.full((1, 997, 2), 0.1, dtype=dtype)
    assert not patch_statistics(Bag(patches)).deviation.any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_gradients_of_statistics_are_finite_where_patches_are_alike(count):
    patches = torch.ones(1, count, 2, requires_grad=True)
    mean, deviation = patch_statistics(Bag(patches))
    (mean.sum() + deviation.nan_to_num().sum()).backward()
    assert patches.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_student_mixes_its_gated_logits_with_the_linear_model(share, bag):
    student = Student(4, 3, linear=share, **SMALL).eval()
    torch.nn.init.normal_(student.linear.bias)
    bags = {"10x": bag, "20x": bag}
    output = student(bags)
    linear = student.linear(named_vectors({name: patch_statistics(bag) for name in bags}))
    torch.testing.assert_close(output.logits, share * linear + (1 - share) * output.gated)


def test_teacher_mixes_its_gated_logits_with_a_linear_model_that_sees_genes(bag, generator):
    genes = {name: torch.randn(3, size, generator=generator) for name, size in GENES.items()}
    teacher = Teacher(4, GENES, 3, magnifications=["20x"], selection_heads=2, linear=0.5, **SMALL).eval()
    assert teacher.linear.sizes == {"mean_20x": 4, "deviation_20x": 4, "genes_tumor": 5, "genes_tme": 7}
    torch.nn.init.normal_(teacher.linear.weights["genes_tme"])
    output = teacher({"20x": bag}, genes)
    difference = 2 * output.logits - output.gated
    torch.testing.assert_close(difference, genes["tme"] @ teacher.linear.weights["genes_tme"].T)


def test_without_a_share_there_is_no_linear_model(bag):
    student = Student(4, 3, **SMALL).eval()
    output = student({"10x": bag, "20x": bag})
    assert student.linear is None
    assert torch.equal(output.logits, output.gated)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(ValueError, match="linear must lie"):
        Student(4, 3, linear=share, **SMALL)
    with pytest.raises(ValueError, match="linear must lie"):
        Teacher(4, GENES, 3, linear=share, selection_heads=2, **SMALL)


def test_vectors_of_other_names_or_widths_are_refused(model):
    with pytest.raises(ValueError, match="vectors"):
        model({"a": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match=r"vectors\['b'\]"):
        model({"a": torch.zeros(1, 4), "b": torch.zeros(1, 3)})


@pytest.mark.parametrize("sizes", [{}, {"1.25x": 4}])
def test_vectors_need_names_that_modules_can_have(sizes):
    with pytest.raises(ValueError, match="sizes"):
        LinearModel(sizes, 2)
