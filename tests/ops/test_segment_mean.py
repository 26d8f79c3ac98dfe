"""Segment means and softmax against golden numbers, loops and derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.ops.segment_mean import segment_mean, segment_softmax
from tests.support.golden import load_golden

seeds = st.integers(0, 2**31 - 1)


def random_case(seed: int, bags: int, size: int, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(bags, size, 3, generator=generator, dtype=torch.float64)
    assignment = torch.randint(-1, segments, (bags, size), generator=generator)
    logits = torch.randn(bags, size, generator=generator, dtype=torch.float64)
    return tokens, assignment, logits


@pytest.mark.parametrize("case", ["dpc_knn_plain", "dpc_knn_masked", "dpc_knn_two"])
def test_merging_is_the_released_one_with_its_eps(case: str) -> None:
    stored = load_golden(case)
    clusters, assignment = int(stored["num_clusters"]), stored["assignment"]
    weight = stored["token_weight"].squeeze(2)
    merged = segment_mean(stored["tokens"], assignment, clusters, weight=weight, eps=1e-6)
    share = segment_softmax(weight.log(), assignment, clusters)
    # The released weights are divided by their sum + 1e-6; ours sum to one.
    total = torch.zeros(merged.shape[:2], dtype=torch.float64).scatter_add(1, assignment, weight)  # [B, K]
    eps = total / (total + 1e-6)
    torch.testing.assert_close(merged, stored["merged"], rtol=0, atol=1e-9)
    torch.testing.assert_close(share * eps.gather(1, assignment), stored["agg_weight"].squeeze(2), rtol=0, atol=1e-9)


def test_means_worked_out_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [5.0, 5.0], [9.0, 9.0]]])
    assignment = torch.tensor([[0, 0, 2, -1]])
    assert segment_mean(tokens, assignment, 3).tolist() == [[[2.0, 2.0], [0.0, 0.0], [5.0, 5.0]]]
    weight = torch.tensor([[3.0, 1.0, 7.0, 1.0]])
    assert segment_mean(tokens, assignment, 3, weight=weight).tolist() == [[[1.5, 1.0], [0.0, 0.0], [5.0, 5.0]]]


@settings(max_examples=40)
@given(seed=seeds, bags=st.integers(0, 3), size=st.integers(0, 12), segments=st.integers(1, 4))
def test_means_and_shares_are_those_of_a_loop(seed: int, bags: int, size: int, segments: int) -> None:
    tokens, assignment, logits = random_case(seed, bags, size, segments)
    share = segment_softmax(logits, assignment, segments)
    mean = segment_mean(tokens, assignment, segments, weight=logits.exp())
    assert (share[assignment < 0] == 0).all()
    for bag in range(bags):
        for segment in range(segments):
            member = assignment[bag] == segment
            own = logits[bag, member].softmax(0)
            torch.testing.assert_close(share[bag, member], own)
            torch.testing.assert_close(mean[bag, segment], own @ tokens[bag, member])


@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 12), segments=st.integers(1, 4))
def test_means_lie_within_their_members_and_shares_do_the_same_job(seed: int, size: int, segments: int) -> None:
    tokens, assignment, logits = random_case(seed, 1, size, segments)
    mean = segment_mean(tokens, assignment, segments, weight=logits.exp())
    share = segment_softmax(logits, assignment, segments)
    torch.testing.assert_close(segment_mean(tokens, assignment, segments, weight=share), mean)
    for segment in assignment[assignment >= 0].unique():
        own = tokens[assignment == segment]
        assert (mean[0, segment] >= own.amin(0) - 1e-12).all()
        assert (mean[0, segment] <= own.amax(0) + 1e-12).all()


def test_logits_of_any_size_are_safe() -> None:
    logits = torch.tensor([[1e4, 1e4 + math.log(3), -1e4, -1e4, 0.0]], dtype=torch.float64)
    share = segment_softmax(logits, torch.tensor([[0, 0, 1, 1, 2]]), 4)
    expected = torch.tensor([[0.25, 0.75, 0.5, 0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(share, expected)


@pytest.mark.parametrize("absent", [-1, 5])
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_tokens_of_no_segment_leak_into_neither_values_nor_gradients(garbage: float, absent: int) -> None:
    tokens, _, logits = random_case(0, 2, 6, 2)
    assignment = torch.tensor([[0, absent, 0, absent, absent, 0], [absent] * 6])
    outside = assignment == absent
    results = []
    for value in (garbage, 0.0):
        x = tokens.masked_fill(outside[..., None], value).requires_grad_()
        y = logits.masked_fill(outside, value).requires_grad_()
        by_share = segment_mean(x, assignment, 2, weight=segment_softmax(y, assignment, 2))
        mean = by_share + segment_mean(x, assignment, 2, weight=y.abs())
        mean.square().sum().backward()
        results.append((mean.detach(), x.grad, y.grad))
    for leaked, clean in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(leaked, clean)


def test_gradients_are_those_of_finite_differences() -> None:
    tokens, assignment, logits = random_case(3, 2, 7, 3)
    tokens.requires_grad_()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_mean(x, assignment, 3), (tokens,))
    assert torch.autograd.gradcheck(lambda x, y: segment_mean(x, assignment, 3, weight=y.exp()), (tokens, logits))
    assert torch.autograd.gradcheck(lambda y: segment_softmax(y, assignment, 3), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    tokens = torch.randn(1, 3000, 4).to(dtype)
    assignment = torch.randint(2, (1, 3000))
    mean = segment_mean(tokens, assignment, 2)
    assert mean.dtype == dtype
    assert torch.equal(mean, segment_mean(tokens.float(), assignment, 2).to(dtype))
    logits = tokens[..., 0]
    share = segment_softmax(logits, assignment, 2)
    assert share.dtype == dtype
    assert torch.equal(share, segment_softmax(logits.float(), assignment, 2).to(dtype))


def test_autocast_changes_nothing() -> None:
    tokens, assignment = torch.randn(1, 50, 4), torch.randint(2, (1, 50))
    plain = segment_mean(tokens, assignment, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(segment_mean(tokens, assignment, 2), plain)


def test_both_compile_without_a_graph_break() -> None:
    tokens, assignment, logits = random_case(0, 2, 9, 3)

    def merge(x: Tensor, y: Tensor) -> Tensor:
        return segment_mean(x, assignment, 3, weight=segment_softmax(y, assignment, 3))

    compiled = torch.compile(merge, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tokens, logits), merge(tokens, logits))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(3)}, ValueError, r"tokens must have shape \[B, N, C\], got \[3\]"),
        (
            {"tokens": torch.zeros(2, 7, 4, dtype=torch.int32)},
            TypeError,
            "tokens must be a floating-point tensor",
        ),
        (
            {"assignment": torch.zeros(2, 6, dtype=torch.int64)},
            ValueError,
            r"assignment must have shape \[B, N\] = \[2, 7\], got \[2, 6\]",
        ),
        (
            {"assignment": torch.zeros(2, 7)},
            TypeError,
            r"assignment must be an int64 tensor \(-1 = in no segment\), got torch.float32",
        ),
        ({"segments": 0}, ValueError, "segments must be at least 1, got 0"),
        (
            {"weight": torch.ones(2, 7, 1)},
            ValueError,
            r"weight must have shape \[B, N\] = \[2, 7\], got \[2, 7, 1\]",
        ),
        (
            {"weight": torch.ones(2, 7, dtype=torch.int64)},
            TypeError,
            "weight must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_errors_of_means_name_the_requirement_and_the_value(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {
        "tokens": torch.zeros(2, 7, 4),
        "assignment": torch.zeros(2, 7, dtype=torch.int64),
        "segments": 2,
    } | change
    with pytest.raises(error, match=message):
        segment_mean(**arguments)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(2, 7, 1), ValueError, r"logits must have shape \[B, N\], got \[2, 7, 1\]"),
        (
            torch.zeros(2, 7, dtype=torch.int64),
            TypeError,
            "logits must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_errors_of_the_softmax_name_the_requirement_and_the_value(
    logits: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        segment_softmax(logits, torch.zeros(2, 7, dtype=torch.int64), 2)


def test_negative_weights_are_refused_and_those_of_no_segment_may_be_anything() -> None:
    tokens, assignment = torch.ones(1, 3, 2), torch.tensor([[0, 0, -1]])
    assert segment_mean(tokens, assignment, 1, weight=torch.tensor([[1.0, 2.0, -3.0]])).tolist() == [[[1.0, 1.0]]]
    with pytest.raises(ValueError, match=r"^weight must not be negative, got -2$"):
        segment_mean(tokens, assignment, 1, weight=torch.tensor([[1.0, -2.0, 0.0]]))
