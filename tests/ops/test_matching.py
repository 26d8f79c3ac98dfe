"""Matching of prototypes to subspaces: the best of all permutations, missing prototypes, values that are not finite."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops import match_prototypes

METRICS = ["euclidean", "cosine"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(a: Tensor, b: Tensor, metric: str) -> float:
    return float((a - b).square().sum() if metric == "euclidean" else 1 - F.cosine_similarity(a, b, dim=0))


@settings(max_examples=25)
@given(
    metric=st.sampled_from(METRICS),
    batch=st.integers(1, 3),
    subspaces=st.integers(1, 3),
    surplus=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_the_match_is_the_best_of_all_one_to_one_choices(
    metric: str, batch: int, subspaces: int, surplus: int, seed: int
) -> None:
    a, b = normal(seed, batch, subspaces + surplus, 4), normal(seed + 1, batch, subspaces, 4)
    present = normal(seed + 2, batch, subspaces + surplus) > -0.5
    found = match_prototypes(a, b, present=present, metric=metric)
    assert found.dtype == torch.int64
    for bag in range(batch):

        def total(choice: tuple[int, ...], bag: int = bag) -> float:
            pairs = [(distance(a[bag, k], b[bag, s], metric), bool(present[bag, k])) for s, k in enumerate(choice)]
            return sum(cost if there else 1e3 for cost, there in pairs)

        choice = tuple(found[bag].tolist())
        assert len(set(choice)) == subspaces
        best = min(map(total, itertools.permutations(range(subspaces + surplus), subspaces)))
        assert total(choice) == pytest.approx(best)


@settings(max_examples=25)
@given(batch=st.integers(1, 4), subspaces=st.integers(1, 4), surplus=st.integers(0, 2), seed=st.integers(0, 10**6))
def test_matching_finds_shuffled_prototypes_again(batch: int, subspaces: int, surplus: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(batch, subspaces + surplus, 3, generator=generator)
    order = torch.stack([torch.randperm(subspaces + surplus, generator=generator)[:subspaces] for _ in range(batch)])
    assert torch.equal(match_prototypes(prototypes, prototypes.gather(1, order[..., None].expand(-1, -1, 3))), order)


def test_matching_takes_the_smallest_total_distance_not_the_nearest_first() -> None:
    assert match_prototypes(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.9], [2.0]]])).tolist() == [[0, 1]]


def test_every_bag_has_a_match_of_its_own() -> None:
    prototypes = torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]])
    subspaces = torch.tensor([[[0.0], [1.0]]]).expand(2, -1, -1)
    assert match_prototypes(prototypes, subspaces).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("metric", METRICS)
def test_the_scale_of_vectors_counts_only_for_the_distance(metric: str) -> None:
    prototypes, subspaces = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]]), torch.tensor([[[9.0, 1.0], [1.0, 1.1]]])
    expected = {"euclidean": [[1, 0]], "cosine": [[0, 1]]}[metric]
    subspaces = torch.tensor([[[0.9, 9.0], [1.0, 0.1]]]) if metric == "euclidean" else subspaces
    assert match_prototypes(prototypes, subspaces, metric=metric).tolist() == expected


@pytest.mark.parametrize("metric", METRICS)
def test_missing_prototypes_may_hold_anything_and_take_what_is_left(metric: str) -> None:
    prototypes, subspaces = normal(0, 1, 3, 4), normal(1, 1, 3, 4)
    present = torch.tensor([[True, False, True]])
    prototypes[0, 1] = math.nan
    found = match_prototypes(prototypes, subspaces, present=present, metric=metric)
    assert sorted(found[0].tolist()) == [0, 1, 2]
    prototypes[0, 1] = subspaces[0, 0]
    assert torch.equal(match_prototypes(prototypes, subspaces, present=present, metric=metric), found)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bag_that_overflowed_keeps_its_order_and_the_others_are_matched(metric: str, value: float) -> None:
    subspaces = normal(0, 2, 2, 3)
    prototypes = subspaces.flip(1).clone()
    prototypes[0, 1, 0] = value
    assert match_prototypes(prototypes, subspaces, metric=metric).tolist() == [[0, 1], [1, 0]]


def test_vectors_of_zeros_have_a_match() -> None:
    assert match_prototypes(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), metric="cosine").sort().values.tolist() == [
        [0, 1]
    ]


def test_an_empty_batch_has_a_result() -> None:
    assert match_prototypes(torch.zeros(0, 3, 4), torch.zeros(0, 2, 4)).shape == (0, 2)


@pytest.mark.parametrize("metric", METRICS)
def test_the_operator_is_well_registered_and_compiles_without_a_graph_break(metric: str) -> None:
    a, b, present = torch.randn(2, 3, 4), torch.randn(2, 2, 4), torch.tensor([[True, True, False]] * 2)
    torch.library.opcheck(torch.ops.disentangled_mil.match_prototypes.default, (a, b, present, metric))
    compiled = torch.compile(lambda x, y: match_prototypes(x, y, metric=metric), fullgraph=True, backend="eager")
    assert torch.equal(compiled(a, b), match_prototypes(a, b, metric=metric))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"prototypes": torch.zeros(2, 2, 5)},
            ValueError,
            "prototypes must hold K >= S = 3 prototypes of each bag, got K = 2",
        ),
        (
            {"subspaces": torch.zeros(2, 3, 4)},
            ValueError,
            r"subspaces must have shape \[B, S, C\] = \[2, S, 5\], got \[2, 3, 4\]",
        ),
        (
            {"prototypes": torch.zeros(2, 3, 5).long()},
            TypeError,
            "prototypes must be a floating-point tensor, got torch.int64",
        ),
        (
            {"present": torch.ones(2, 3)},
            TypeError,
            r"present must be a bool tensor \(True = the bag has it\), got torch.float32",
        ),
        (
            {"present": torch.ones(2, 2, dtype=torch.bool)},
            ValueError,
            r"present must have shape \[B, K\] = \[2, 3\], got \[2, 2\]",
        ),
        ({"metric": "manhattan"}, ValueError, "metric must be one of 'euclidean', 'cosine', got 'manhattan'"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"prototypes": torch.zeros(2, 3, 5), "subspaces": torch.zeros(2, 3, 5)} | change
    with pytest.raises(error, match=message):
        match_prototypes(**arguments)
