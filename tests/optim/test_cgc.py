"""CGCOptimizer: what it does to gradients, and that it is an optimizer to everything that asks."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler

from disentangled_mil.optim import CGCOptimizer, CGCReport

SURE_TUMOR = {"tumor": 0.9, "tme": 0.6}


def parameter(*values: object) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def two_rows() -> tuple[nn.Parameter, nn.Parameter]:
    """Blocks [2, 2] whose gradients conflict in the second row only."""
    tumor, tme = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    tumor.grad = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    tme.grad = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
    return tumor, tme


def conflict(lr: float = 1.0) -> tuple[CGCOptimizer, nn.Parameter, nn.Parameter]:
    tumor, tme = two_rows()
    sgd = torch.optim.SGD([tumor, tme], lr=lr)
    return CGCOptimizer(sgd, {"tumor": [tumor], "tme": [tme]}), tumor, tme


class Head(nn.Module):
    """Two subspace blocks and a shared bias."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("tumor", "tme")}
        )
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return sum(features[name] @ block.T for name, block in self.blocks.items()) + self.bias

    def subspace_parameters(self) -> dict[str, list[Tensor]]:
        return {name: [block] for name, block in self.blocks.items()}


def batch(seed: int, sign: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """Features whose gradients agree in every row (sign 1) or conflict in every row (sign -1)."""
    generator = torch.Generator().manual_seed(seed)
    tumor = torch.rand(1, 4, generator=generator)
    return {"tumor": tumor, "tme": sign * tumor}, torch.randint(0, 3, (1,), generator=generator)


def backward(head: Head, seed: int, sign: float = 1.0) -> Tensor:
    features, label = batch(seed, sign)
    loss = nn.functional.cross_entropy(head(features), label)
    loss.backward()
    return loss


# What happens to the gradients


def test_each_row_is_coordinated_on_its_own_by_hand() -> None:
    optimizer, tumor, tme = conflict()
    assert optimizer.step(confidence=SURE_TUMOR) is None
    torch.testing.assert_close(tumor.detach(), -torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(tme.detach(), -torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))


def test_granularity_tensor_compares_the_whole_parameter() -> None:
    tumor, tme = two_rows()
    optimizer = CGCOptimizer(
        torch.optim.SGD([tumor, tme], lr=1.0), {"tumor": [tumor], "tme": [tme]}, granularity="tensor"
    )
    optimizer.step(confidence=SURE_TUMOR)
    # The inner product over both rows is 1 - 1 = 0, no conflict.
    assert tme.tolist() == [[-1.0, -1.0], [2.0, -1.0]]
    assert optimizer.report.rows == 1


def test_granularity_subspace_compares_all_parameters_at_once() -> None:
    a, b, c, d = (parameter(0.0, 0.0) for _ in range(4))
    a.grad, b.grad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    c.grad, d.grad = torch.tensor([1.0, 0.0]), torch.tensor([3.0, -3.0])
    optimizer = CGCOptimizer(
        torch.optim.SGD([a, b, c, d], lr=1.0), {"tumor": [a, b], "tme": [c, d]}, granularity="subspace"
    )
    optimizer.step(confidence=SURE_TUMOR)
    # (1, 0, 3, -3) - (-5 / 5) (1, 0, 0, 2)
    torch.testing.assert_close(c.grad, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(d.grad, torch.tensor([3.0, -1.0]))
    assert optimizer.report.rows == 1


def test_parameters_with_less_than_two_dimensions_are_one_row_and_convolutions_one_per_output() -> None:
    shapes = [(), (5,), (2, 3), (4, 2, 3, 3)]
    blocks = {name: [nn.Parameter(torch.ones(shape)) for shape in shapes] for name in ("tumor", "tme")}
    optimizer = CGCOptimizer(torch.optim.SGD(blocks["tumor"] + blocks["tme"], lr=1.0), blocks)
    for sign, block in zip((1.0, -1.0), blocks.values(), strict=True):
        for each in block:
            each.grad = torch.full_like(each, sign)
    optimizer.step(confidence=SURE_TUMOR)
    assert optimizer.report.rows == 1 + 1 + 2 + 4
    assert optimizer.report.projected["tme"] == 8
    assert all((each == 1).all() for each in blocks["tme"])


def test_three_subspaces_end_without_conflict() -> None:
    head = nn.ParameterList(torch.randn(6, 2, generator=torch.Generator().manual_seed(s)) for s in range(3))
    names = ("tumor", "tme", "stroma")
    optimizer = CGCOptimizer(torch.optim.SGD(head, lr=0.0), {n: [p] for n, p in zip(names, head, strict=True)})
    for each in head:
        each.grad = each.detach().clone()
    optimizer.step(confidence={"stroma": 0.3, "tumor": 0.2, "tme": 0.1})
    tumor, tme, stroma = (each.grad for each in head)
    for sure, unsure in ((stroma, tumor), (stroma, tme), (tumor, tme)):
        assert ((sure * unsure).sum(-1) > -1e-5).all()
    assert list(optimizer.report.cosine) == [("tumor", "tme"), ("tumor", "stroma"), ("tme", "stroma")]


def test_missing_and_zero_gradients_take_no_part() -> None:
    a, b, c, d = (parameter(0.0, 0.0) for _ in range(4))
    a.grad, c.grad, d.grad = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.tensor([-1.0, 0.0])
    optimizer = CGCOptimizer(torch.optim.SGD([a, b, c, d], lr=1.0), {"tumor": [a, b], "tme": [c, d]})
    optimizer.step(confidence=SURE_TUMOR)
    assert c.grad.tolist() == [0.0, 0.0]
    assert d.grad.tolist() == [-1.0, 0.0]
    assert b.grad is None
    assert optimizer.report.rows == 1

    a.grad = torch.zeros(2)
    c.grad = torch.tensor([-1.0, 0.0])
    optimizer.step(confidence=SURE_TUMOR)
    assert c.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("granularity", ["row", "tensor", "subspace"])
def test_a_subspace_without_gradients_does_not_keep_the_others_from_being_coordinated(granularity: str) -> None:
    tumor, tme, frozen = parameter(0.0, 0.0), parameter(0.0, 0.0), parameter(0.0, 0.0)
    tumor.grad, tme.grad = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    blocks = {"tumor": [tumor], "tme": [tme], "stroma": [frozen]}
    sgd = torch.optim.SGD([tumor, tme, frozen], lr=1.0)
    optimizer = CGCOptimizer(sgd, blocks, granularity=granularity)
    optimizer.step(confidence={**SURE_TUMOR, "stroma": 0.7})
    assert tumor.grad.tolist() == [1.0, 0.0]
    assert tme.grad.tolist() == pytest.approx([0.0, 1.0])
    assert frozen.grad is None
    assert optimizer.report.rows == 1


@pytest.mark.parametrize("granularity", ["row", "tensor", "subspace"])
def test_no_gradients_at_all_is_a_step_without_rows(granularity: str) -> None:
    tumor, tme = parameter(0.0), parameter(0.0)
    optimizer = CGCOptimizer(
        torch.optim.SGD([tumor, tme]),
        {"tumor": [tumor], "tme": [tme]},
        granularity=granularity,
    )
    optimizer.step(confidence=SURE_TUMOR)
    assert optimizer.report.rows == 0


def test_gradients_of_different_precision_keep_theirs() -> None:
    tumor = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    tme = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    tumor.grad = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    tme.grad = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    CGCOptimizer(torch.optim.SGD([tumor, tme]), {"tumor": [tumor], "tme": [tme]}).step(confidence=SURE_TUMOR)
    assert tumor.grad.dtype == torch.bfloat16
    torch.testing.assert_close(tme.grad, torch.tensor([-1.5, 1.5], dtype=torch.float64))


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=25)
def test_order_of_the_subspaces_does_not_matter(seed: int, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(3, rows, width, generator=generator)
    confidence = dict(zip("abc", torch.rand(3, generator=generator), strict=True))
    results = []
    for names in ("abc", "cab"):
        parameters = {name: nn.Parameter(torch.zeros(rows, width)) for name in names}
        for name, each in parameters.items():
            each.grad = gradients["abc".index(name)].clone()
        optimizer = CGCOptimizer(
            torch.optim.SGD(parameters.values()), {name: [each] for name, each in parameters.items()}
        )
        optimizer.step(confidence=confidence)
        results.append(torch.stack([parameters[name].grad for name in "abc"]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("confidence", [SURE_TUMOR, {"tumor": 0.1, "tme": 0.2}])
def test_training_without_conflict_equals_the_wrapped_optimizer_bit_for_bit(
    confidence: dict[str, float],
) -> None:
    plain, coordinated = Head(), Head()
    adam = torch.optim.AdamW(plain.parameters(), lr=0.1)
    cgc = CGCOptimizer(torch.optim.AdamW(coordinated.parameters(), lr=0.1), coordinated.subspace_parameters())
    for seed in range(5):
        for head in (plain, coordinated):
            head.zero_grad()
            backward(head, seed)
        adam.step()
        cgc.step(confidence=confidence)
    for ours, theirs in zip(coordinated.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# Confidences


def test_accumulated_confidences_are_summed_and_cleared_by_the_step() -> None:
    optimizer, _, tme = conflict(lr=0.0)
    optimizer.accumulate({"tumor": 0.2, "tme": torch.tensor(0.6, dtype=torch.float64)})
    optimizer.accumulate({"tumor": torch.tensor(0.9, requires_grad=True), "tme": 0.1})
    optimizer.step(confidence={"tumor": 0.25, "tme": 0.25})
    confidence = optimizer.report.confidence
    torch.testing.assert_close(confidence, {"tumor": torch.tensor(1.35), "tme": torch.tensor(0.95)})
    assert not confidence["tumor"].requires_grad
    torch.testing.assert_close(tme.grad[1], torch.tensor([-1.5, 1.5]))
    with pytest.raises(ValueError, match="confidence must be given"):
        optimizer.step()


def test_micro_batches_equal_one_batch() -> None:
    confidences = [{"tumor": 0.3, "tme": 0.2}, {"tumor": 0.1, "tme": 0.6}]
    heads = Head(), Head()
    together, apart = (CGCOptimizer(torch.optim.SGD(h.parameters(), lr=1.0), h.subspace_parameters()) for h in heads)
    for seed, confidence in enumerate(confidences):
        for head in heads:
            backward(head, seed, sign=-1.0)
        apart.accumulate(confidence)
    together.step(confidence={"tumor": 0.4, "tme": 0.8})
    apart.step()
    for ours, theirs in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_zero_grad_keeps_accumulated_confidences() -> None:
    optimizer, _, _ = conflict()
    optimizer.accumulate(SURE_TUMOR)  # some loops reset gradients between forward and backward
    optimizer.zero_grad()
    optimizer.step()


def test_rejected_confidences_leave_no_trace() -> None:
    optimizer, _, _ = conflict()
    with pytest.raises(ValueError, match=r"confidence\['tme'\] must have shape \[\], got \[2\]"):
        optimizer.accumulate({"tumor": 5.0, "tme": torch.ones(2)})
    with pytest.raises(ValueError, match=r"confidence must have exactly the names \['tme', 'tumor'\], got"):
        optimizer.step(confidence={"tumor": 5.0, "immune": 1.0})
    optimizer.step(confidence=SURE_TUMOR)
    torch.testing.assert_close(optimizer.report.confidence["tumor"], torch.tensor(0.9))


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        ({"tumor": 0.9, "tme": None}, r"confidence\['tme'\] must be a number or a scalar tensor, got NoneType"),
        ({"tumor": "0.9", "tme": 0.6}, r"confidence\['tumor'\] must be a number or a scalar tensor, got str"),
        ([0.9, 0.6], r"confidence must be a mapping from names, got list"),
        (torch.ones(2), r"confidence must be a mapping from names, got Tensor"),
    ],
)
def test_confidences_that_are_no_numbers_are_named(confidence: object, message: str) -> None:
    optimizer, _, _ = conflict()
    with pytest.raises(TypeError, match=message):
        optimizer.accumulate(confidence)
    with pytest.raises(TypeError, match=message):
        optimizer.step(confidence=confidence)


@pytest.mark.parametrize("number", [float, int, np.float32, np.float64, np.int64, torch.tensor])
def test_confidences_are_numbers_of_any_type(number: Callable[[int], object]) -> None:
    optimizer, _, _ = conflict()
    optimizer.step(confidence={"tumor": number(2), "tme": number(1)})
    assert [value.item() for value in optimizer.report.confidence.values()] == [2, 1]


def test_a_confidence_in_the_place_of_the_closure_is_named() -> None:
    optimizer, tumor, _ = conflict()
    message = r"closure must be callable, got dict \(confidences are given by name: step\(confidence=\.\.\.\)\)"
    with pytest.raises(TypeError, match=message):
        optimizer.step(SURE_TUMOR)
    assert not tumor.any()
    optimizer.step(confidence=SURE_TUMOR)


def test_failed_step_forgets_its_confidences() -> None:
    optimizer, _, tme = conflict()
    dense, tme.grad = tme.grad, tme.grad.to_sparse()
    with pytest.raises(TypeError, match=r"gradients of subspace_parameters must be dense, got torch.sparse_coo"):
        optimizer.step(confidence={"tumor": 0.0, "tme": 5.0})
    tme.grad = dense
    optimizer.step(confidence=SURE_TUMOR)
    torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.6))


# The report


def test_report_tells_what_was_found_and_done() -> None:
    optimizer, _, _ = conflict()
    before = optimizer.report
    assert isinstance(before, CGCReport)
    assert before.rows == 0
    assert before.cosine["tumor", "tme"].shape == (0,)
    optimizer.step(confidence=SURE_TUMOR)
    report = optimizer.report
    torch.testing.assert_close(report.cosine, {("tumor", "tme"): torch.tensor([0.5**0.5, -(0.1**0.5)])})
    assert {name: int(count) for name, count in report.projected.items()} == {"tumor": 0, "tme": 1}
    assert report.rows == 2
    torch.testing.assert_close(report.confidence, {"tumor": torch.tensor(0.9), "tme": torch.tensor(0.6)})


# Closures


def test_closure_gradients_are_coordinated_before_the_wrapped_optimizer_sees_them() -> None:
    optimizer, _, tme = conflict()
    gradient = tme.grad.clone()

    def closure() -> float:
        assert torch.is_grad_enabled()
        tme.grad = gradient.clone()
        optimizer.accumulate(SURE_TUMOR)
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(tme[1].detach(), torch.tensor([1.5, -1.5]))
    torch.testing.assert_close(optimizer.report.confidence["tumor"], torch.tensor(0.9))


def test_every_evaluation_of_a_closure_is_coordinated_with_its_own_confidences() -> None:
    head, features = Head(), batch(0, sign=-1.0)
    lbfgs = torch.optim.LBFGS(head.parameters(), lr=0.1, max_iter=3)
    optimizer = CGCOptimizer(lbfgs, head.subspace_parameters())
    evaluations = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        evaluations.append(optimizer.report.rows)
        loss = nn.functional.cross_entropy(head(features[0]), features[1])
        loss.backward()
        optimizer.accumulate({"tumor": 1.0, "tme": 0.0})
        return loss

    before = head.blocks["tme"].detach().clone()
    optimizer.step(closure, confidence={"tumor": 0.0, "tme": 0.5})
    assert evaluations == [0, 3, 3]
    torch.testing.assert_close(optimizer.report.confidence, {"tumor": torch.tensor(1.0), "tme": torch.tensor(0.5)})
    assert torch.equal(head.blocks["tme"], before)  # opposite gradients: only the tumor block moves


# An optimizer to everything that asks


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
        ),
    ],
    ids=["lambda", "one-cycle", "cosine", "plateau", "sequential"],
)
def test_schedulers_drive_the_wrapped_optimizer_alike(
    build: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler],
) -> None:
    head = Head()
    wrapped = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    plain = torch.optim.AdamW(Head().parameters(), lr=0.1)
    schedules = []
    for optimizer, options in ((wrapped, {"confidence": SURE_TUMOR}), (plain, {})):
        scheduler = build(optimizer)
        rates = []
        for _ in range(5):
            optimizer.step(**options)
            metrics = [1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []
            scheduler.step(*metrics)
            rates.append(optimizer.param_groups[0]["lr"])
        schedules.append(rates)
    assert schedules[0] == schedules[1]
    assert wrapped.wrapped.param_groups[0]["lr"] == schedules[0][-1]


def test_grad_scaler_forwards_confidences_and_scale_changes_nothing() -> None:
    heads = Head(), Head()
    plain, scaled = (CGCOptimizer(torch.optim.SGD(h.parameters(), lr=0.1), h.subspace_parameters()) for h in heads)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    features, label = batch(0, sign=-0.5)
    for head, optimizer in zip(heads, (plain, scaled), strict=True):
        loss = nn.functional.cross_entropy(head(features), label)
        if optimizer is scaled:
            scaler.scale(loss).backward()
            scaler.step(optimizer, confidence=SURE_TUMOR)
            scaler.update()
        else:
            loss.backward()
            optimizer.step(confidence=SURE_TUMOR)
    for ours, theirs in zip(*(head.parameters() for head in heads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert scaled.report.projected["tme"] == 3


def test_coordinating_scaled_gradients_is_scaling_coordinated_ones() -> None:
    scale, gradients = 2.0**16, []
    for factor in (1.0, scale):
        optimizer, tumor, tme = conflict()
        for each in (tumor, tme):
            each.grad.mul_(factor)
        optimizer.step(confidence=SURE_TUMOR)
        gradients.append(torch.stack([tumor.grad, tme.grad]))
    assert torch.equal(gradients[0] * scale, gradients[1])


def test_grad_scaler_skips_a_step_that_overflowed() -> None:
    optimizer, tumor, tme = conflict()
    scaler = torch.amp.GradScaler(device="cpu")
    scaler.scale(torch.tensor(1.0))
    tme.grad[0, 0] = torch.inf
    scaler.step(optimizer, confidence=SURE_TUMOR)
    assert not tumor.any()
    with pytest.raises(ValueError, match="confidence must be given"):  # the skipped one left nothing behind
        optimizer.step()


def test_overflow_without_a_scaler_passes_through() -> None:
    optimizer, _, tme = conflict()
    tme.grad[1, 0] = torch.inf
    expected = tme.grad.clone()
    optimizer.step(confidence=SURE_TUMOR)
    assert torch.equal(tme.grad, expected)


def test_state_goes_into_the_plain_optimizer_and_back() -> None:
    head = Head()
    cgc = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    backward(head, 0)
    cgc.step(confidence=SURE_TUMOR)
    saved = copy.deepcopy(cgc.state_dict())

    twin = copy.deepcopy(head)
    plain = torch.optim.AdamW(twin.parameters(), lr=0.5)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == 0.1
    again = CGCOptimizer(torch.optim.AdamW(twin.parameters(), lr=0.5), twin.subspace_parameters())
    again.load_state_dict(plain.state_dict())
    assert again.state_dict()["param_groups"] == saved["param_groups"]
    torch.testing.assert_close(again.state_dict()["state"], saved["state"])

    for each, optimizer in ((head, cgc), (twin, again)):
        each.zero_grad()
        backward(each, 1, sign=-1.0)
        optimizer.step(confidence=SURE_TUMOR)
    for ours, theirs in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_groups_state_and_defaults_are_the_wrapped_ones() -> None:
    optimizer, tumor, _ = conflict()
    wrapped = optimizer.wrapped
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is wrapped.param_groups
    assert optimizer.state is wrapped.state
    assert optimizer.defaults is wrapped.defaults
    optimizer.add_param_group({"params": [parameter(1.0)], "lr": 0.5})
    assert len(wrapped.param_groups) == 2
    optimizer.zero_grad(set_to_none=False)
    assert not tumor.grad.any()
    optimizer.zero_grad()
    assert tumor.grad is None
    for name in ("param_groups", "state", "defaults"):
        replacement = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, replacement)
        assert getattr(wrapped, name) is replacement


def test_hooks_are_registered_with_the_wrapped_optimizer_and_called_once() -> None:
    optimizer, _, tme = conflict()
    calls: list[str] = []

    def before(hooked: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        assert hooked is optimizer.wrapped
        torch.testing.assert_close(tme.grad[1], torch.tensor([-1.5, 1.5]))
        calls.append("step pre")

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: calls.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("state pre"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("state post"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("load post"))
    optimizer.step(confidence=SURE_TUMOR)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["step pre", "step post", "state pre", "state post", "load pre", "load post"]


def test_deepcopy_and_pickle_go_on_independently_of_the_original() -> None:
    head = Head()
    optimizer = CGCOptimizer(torch.optim.AdamW(head.parameters(), lr=0.1), head.subspace_parameters())
    lr_scheduler.ExponentialLR(optimizer, 0.9)  # hangs a patched step on the instance
    backward(head, 0)
    optimizer.step(confidence=SURE_TUMOR)
    file = io.BytesIO(pickle.dumps((head, optimizer)))
    before = [p.detach().clone() for p in head.parameters()]
    for twin, copied in (copy.deepcopy((head, optimizer)), pickle.load(file)):
        backward(twin, 1, sign=-1.0)
        copied.step(confidence=SURE_TUMOR)
        assert copied.report.projected["tme"] == 3
        assert all(not torch.equal(p, b) for p, b in zip(twin.parameters(), before, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(head.parameters(), before, strict=True))


def test_repr_shows_options_and_the_wrapped_optimizer() -> None:
    optimizer, _, _ = conflict(lr=0.25)
    text = repr(optimizer)
    assert text.startswith("CGCOptimizer(SGD (")
    assert "lr: 0.25" in text
    assert text.endswith("subspaces=('tumor', 'tme'), granularity='row')")


# Errors


def test_wrong_constructor_arguments_are_named() -> None:
    a, b, c, wide = parameter(0.0), parameter(0.0), parameter(0.0), parameter(0.0, 1.0)
    index = torch.tensor([1])
    sgd = torch.optim.SGD([a, b, wide])
    cases: list[tuple[object, type[Exception], str]] = [
        (
            {"tumor": [a]},
            ValueError,
            r"subspace_parameters must name at least two subspaces, got \['tumor'\]",
        ),
        ({"tumor": [], "tme": []}, ValueError, r"\['tumor'\] must have at least one parameter, got none"),
        ({"tumor": [a, wide], "tme": [b]}, ValueError, r"\['tme'\] must have as many .* 'tumor', 2, got 1"),
        (
            {"tumor": [a], "tme": [wide]},
            ValueError,
            r"\['tme'\]\[0\] must have the shape .*, \[1\], got \[2\]",
        ),
        ({"tumor": [a], "tme": [c]}, ValueError, r"\['tme'\]\[0\] must be a parameter of the optimizer"),
        ({"tumor": [a], "tme": [a]}, ValueError, r"\['tme'\]\[0\] must occur once, got .*\['tumor'\]\[0\]"),
        ({"tumor": [a], "tme": ["b"]}, TypeError, r"\['tme'\]\[0\] must be a parameter, got str"),
        ({"tumor": [a], "tme": [index]}, TypeError, r"\['tme'\]\[0\] must be a floating-point tensor, got"),
        ([[a], [b]], TypeError, r"subspace_parameters must be a mapping from names, got list"),
        ({"tumor": [a], "tme": None}, TypeError, r"\['tme'\] must be several parameters, got NoneType"),
    ]
    for blocks, error, message in cases:
        with pytest.raises(error, match=message):
            CGCOptimizer(sgd, blocks)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        CGCOptimizer([a, b], {"tumor": [a], "tme": [b]})
    with pytest.raises(ValueError, match="granularity must be one of 'row', 'tensor', 'subspace', got 'class'"):
        CGCOptimizer(sgd, {"tumor": [a], "tme": [b]}, granularity="class")


# Several processes


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_parameters_sharded_over_processes_are_refused() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        a, b = (nn.Parameter(distribute_tensor(torch.zeros(2, 2), mesh, [Shard(0)])) for _ in range(2))
        message = (
            r"subspace_parameters\['tumor'\]\[0\] must be whole in every process, got a DTensor "
            r"\(leave it out of fully_shard by ignored_params, or train with DistributedDataParallel\)"
        )
        with pytest.raises(TypeError, match=message):
            CGCOptimizer(torch.optim.SGD([a, b]), {"tumor": [a], "tme": [b]})
    finally:
        dist.destroy_process_group()


PROCESS = """
import datetime, sys
import torch
import torch.distributed as dist
from disentangled_mil.optim import CGCOptimizer

dist.init_process_group(
    "gloo", init_method=sys.argv[1], rank=1, world_size=2, timeout=datetime.timedelta(seconds=60)
)
tumor, tme = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
tumor.grad = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
tme.grad = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
optimizer = CGCOptimizer(torch.optim.SGD([tumor, tme], lr=1.0), {"tumor": [tumor], "tme": [tme]})
optimizer.step(confidence={"tumor": 0.2, "tme": 0.4})
assert torch.equal(tumor.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_processes_sum_their_confidences_and_decide_alike(tmp_path: Path) -> None:
    # Alone, this process would change tme and the other one tumor.
    address = (tmp_path / "store").as_uri()
    root = Path(__file__).resolve().parents[2]
    other = subprocess.Popen([sys.executable, "-c", PROCESS, address], cwd=root, stderr=subprocess.PIPE, text=True)
    try:
        dist.init_process_group("gloo", init_method=address, rank=0, world_size=2, timeout=timedelta(seconds=60))
        optimizer, _, tme = conflict()
        optimizer.step(confidence={"tumor": 0.9, "tme": 0.5})
        torch.testing.assert_close(tme.grad, torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))
        torch.testing.assert_close(optimizer.report.confidence["tme"], torch.tensor(0.9))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        errors = other.communicate(timeout=60)[1]
    assert other.returncode == 0, errors
