"""What a step does to gradients, and what it reports."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from disentangled_mil.optim import CGCOptimizer, CGCReport
from tests.support.cgc import CONFIDENT_TUMOR, Head, backward, conflict, parameter, two_rows


def test_each_row_is_coordinated_on_its_own_by_hand() -> None:
    optimizer, tumor, tme = conflict()
    assert optimizer.step(confidence=CONFIDENT_TUMOR) is None
    torch.testing.assert_close(tumor.detach(), -torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(tme.detach(), -torch.tensor([[1.0, 1.0], [-1.5, 1.5]]))


def test_granularity_tensor_compares_the_whole_parameter() -> None:
    tumor, tme = two_rows()
    optimizer = CGCOptimizer(
        torch.optim.SGD([tumor, tme], lr=1.0), {"tumor": [tumor], "tme": [tme]}, granularity="tensor"
    )
    optimizer.step(confidence=CONFIDENT_TUMOR)
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
    optimizer.step(confidence=CONFIDENT_TUMOR)
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
    optimizer.step(confidence=CONFIDENT_TUMOR)
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
    for more, less in ((stroma, tumor), (stroma, tme), (tumor, tme)):
        assert ((more * less).sum(-1) > -1e-5).all()
    assert list(optimizer.report.cosine) == [("tumor", "tme"), ("tumor", "stroma"), ("tme", "stroma")]


def test_missing_and_zero_gradients_take_no_part() -> None:
    a, b, c, d = (parameter(0.0, 0.0) for _ in range(4))
    a.grad, c.grad, d.grad = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), torch.tensor([-1.0, 0.0])
    optimizer = CGCOptimizer(torch.optim.SGD([a, b, c, d], lr=1.0), {"tumor": [a, b], "tme": [c, d]})
    optimizer.step(confidence=CONFIDENT_TUMOR)
    assert c.grad.tolist() == [0.0, 0.0]
    assert d.grad.tolist() == [-1.0, 0.0]
    assert b.grad is None
    assert optimizer.report.rows == 1

    a.grad = torch.zeros(2)
    c.grad = torch.tensor([-1.0, 0.0])
    optimizer.step(confidence=CONFIDENT_TUMOR)
    assert c.grad.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("granularity", ["row", "tensor", "subspace"])
def test_a_subspace_without_gradients_does_not_keep_the_others_from_being_coordinated(granularity: str) -> None:
    tumor, tme, frozen = parameter(0.0, 0.0), parameter(0.0, 0.0), parameter(0.0, 0.0)
    tumor.grad, tme.grad = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    blocks = {"tumor": [tumor], "tme": [tme], "stroma": [frozen]}
    sgd = torch.optim.SGD([tumor, tme, frozen], lr=1.0)
    optimizer = CGCOptimizer(sgd, blocks, granularity=granularity)
    optimizer.step(confidence={**CONFIDENT_TUMOR, "stroma": 0.7})
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
    optimizer.step(confidence=CONFIDENT_TUMOR)
    assert optimizer.report.rows == 0


def test_gradients_of_different_precision_keep_theirs() -> None:
    tumor = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    tme = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    tumor.grad = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    tme.grad = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    CGCOptimizer(torch.optim.SGD([tumor, tme]), {"tumor": [tumor], "tme": [tme]}).step(confidence=CONFIDENT_TUMOR)
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


@pytest.mark.parametrize("confidence", [CONFIDENT_TUMOR, {"tumor": 0.1, "tme": 0.2}])
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


def test_report_tells_what_was_found_and_done() -> None:
    optimizer, _, _ = conflict()
    before = optimizer.report
    assert isinstance(before, CGCReport)
    assert before.rows == 0
    assert before.cosine["tumor", "tme"].shape == (0,)
    optimizer.step(confidence=CONFIDENT_TUMOR)
    report = optimizer.report
    torch.testing.assert_close(report.cosine, {("tumor", "tme"): torch.tensor([0.5**0.5, -(0.1**0.5)])})
    assert {name: int(count) for name, count in report.projected.items()} == {"tumor": 0, "tme": 1}
    assert report.rows == 2
    torch.testing.assert_close(report.confidence, {"tumor": torch.tensor(0.9), "tme": torch.tensor(0.6)})
