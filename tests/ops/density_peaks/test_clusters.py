"""The clusters: golden numbers, a bag worked out by hand, the definition in numpy, and properties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.ops import density_peaks
from tests.support.density_peaks import (
    BACKENDS,
    equal,
    find,
    random_bags,
    repeated_bag,
    seeds,
)


def cluster_by_loops(tokens: np.ndarray, clusters: int, neighbors: int) -> tuple[list[int], list[int]]:
    """The definition, token by token; ties go to the token whose content comes first."""
    n, width = tokens.shape
    place = np.argsort(np.argsort(tokens @ np.sin(np.arange(1, width + 1)), kind="stable"))
    distance = [[math.dist(a, b) / math.sqrt(width) for b in tokens] for a in tokens]
    k = min(neighbors, n)
    log_density = [-sum(d * d for d in sorted(row)[:k]) / k for row in distance]
    score = []
    for i in range(n):
        denser = [
            distance[i][j]
            for j in range(n)
            if log_density[j] > log_density[i] or (log_density[j] == log_density[i] and place[j] < place[i])
        ]
        gap = min(denser) if denser else max(map(max, distance))
        score.append(log_density[i] + (math.log(gap) if gap > 0 else -math.inf))
    centers = sorted(range(n), key=lambda i: (-score[i], place[i]))[:clusters]
    assignment = [
        centers.index(i) if i in centers else min(range(len(centers)), key=lambda c: (distance[i][centers[c]], c))
        for i in range(n)
    ]
    return assignment, centers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["dpc_knn_plain", "dpc_knn_masked", "dpc_knn_two"])
def test_clusters_are_the_released_ones(
    golden: Callable[[str], dict[str, Tensor]], case: str, backend: str, device: str
) -> None:
    stored = golden(case)
    mask = stored["mask"].bool()
    found = find(
        stored["tokens"],
        int(stored["num_clusters"]),
        neighbors=int(stored["k"]),
        mask=mask,
        backend=backend,
        device=device,
    )
    assert torch.equal(found.assignment[mask], stored["assignment"][mask])
    assert (found.assignment[~mask] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bag_worked_out_by_hand(backend: str, device: str) -> None:
    tokens = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [12.0]]], dtype=torch.float64)
    found = find(tokens, 2, neighbors=2, backend=backend, device=device)
    assert found.assignment.tolist() == [[0, 0, 0, 1, 1]]
    assert found.centers.tolist() == [[0, 3]]
    log_density = torch.tensor([[-0.5, -0.5, -0.5, -2.0, -2.0]], dtype=torch.float64)
    gap = torch.tensor([[12.0, 1.0, 1.0, 8.0, 2.0]], dtype=torch.float64)  # equally dense: the lower index is denser
    torch.testing.assert_close(found.score, log_density + gap.log())


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 40), clusters=st.integers(1, 6), neighbors=st.integers(1, 8))
def test_clusters_are_those_of_the_definition(
    backend: str, seed: int, size: int, clusters: int, neighbors: int, device: str
) -> None:
    tokens = random_bags(seed, 1, size, 4)
    found = find(tokens, clusters, neighbors=neighbors, backend=backend, device=device)
    assignment, centers = cluster_by_loops(tokens[0].numpy(), clusters, neighbors)
    assert found.assignment[0].tolist() == assignment
    assert found.centers[0].tolist() == centers + [-1] * (clusters - size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_follow_the_definition_too(backend: str, device: str) -> None:
    for seed in range(20):
        # One coordinate of whole numbers: every distance, square and sum is exact, and most are tied.
        tokens = random_bags(seed, 1, 24, 1).mul(3).round()
        found = find(tokens, 5, neighbors=4, backend=backend, device=device)
        assignment, centers = cluster_by_loops(tokens[0].numpy(), 5, 4)
        assert found.assignment[0].tolist() == assignment
        assert found.centers[0].tolist() == centers


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bag_of_one_repeated_token_is_clustered_by_index(backend: str, device: str) -> None:
    found = find(torch.full((1, 6, 3), 0.1), 2, backend=backend, device=device)
    assert found.centers.tolist() == [[0, 1]]
    assert found.assignment.tolist() == [[0, 1, 0, 0, 0, 0]]
    assert (found.score == -math.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_densities_that_would_underflow_are_told_apart(backend: str, device: str) -> None:
    tokens = 100 * torch.tensor([[[0.0], [1.0], [2.5], [20.0], [21.0], [23.5]]])
    found = find(tokens, 2, neighbors=3, backend=backend, device=device)
    assert found.assignment.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert found.score.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    clusters=st.integers(1, 4),
    garbage=st.sampled_from([0.0, math.nan, math.inf]),
)
def test_a_bag_alone_equals_itself_in_a_padded_batch(
    backend: str, seed: int, sizes: list[int], clusters: int, garbage: float, device: str
) -> None:
    # Real tokens are scattered among the padding.
    generator = torch.Generator().manual_seed(seed)
    padded = torch.full((len(sizes), 33, 5), garbage)
    mask = torch.zeros(len(sizes), 33, dtype=torch.bool)
    for bag, size in enumerate(sizes):
        place = torch.randperm(33, generator=generator)[:size].sort().values
        padded[bag, place] = torch.randn(size, 5, generator=generator)
        mask[bag, place] = True
    found = find(padded, clusters, mask=mask, backend=backend, device=device)
    assert (found.assignment[~mask] == -1).all()
    assert (found.score[~mask] == -math.inf).all()
    for bag, size in enumerate(sizes):
        alone = find(padded[bag, mask[bag]][None], clusters, backend=backend, device=device)
        place = mask[bag].nonzero().squeeze(1)
        assert torch.equal(found.assignment[bag, place], alone.assignment[0])
        assert torch.equal(found.score[bag, place], alone.score[0])
        kept = min(size, clusters)
        assert torch.equal(found.centers[bag, :kept], place[alone.centers[0, :kept]])
        assert (found.centers[bag, kept:] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 50), clusters=st.integers(1, 5))
def test_permuting_tokens_permutes_the_assignment(
    backend: str, seed: int, size: int, clusters: int, device: str
) -> None:
    # Two tokens that are each other's nearest have the same mean of two distances; means of three do not tie.
    tokens = random_bags(seed, 1, size + 6, 6)
    order = torch.randperm(size + 6, generator=torch.Generator().manual_seed(seed))
    plain = find(tokens, clusters, neighbors=3, backend=backend, device=device)
    permuted = find(tokens[:, order], clusters, neighbors=3, backend=backend, device=device)
    assert torch.equal(permuted.assignment, plain.assignment[:, order])
    assert torch.equal(order[permuted.centers], plain.centers)


@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 60), distinct=st.integers(1, 60), clusters=st.integers(1, 70))
def test_every_center_is_in_its_own_cluster(seed: int, size: int, distinct: int, clusters: int) -> None:
    found = density_peaks(repeated_bag(seed, size, 3, distinct), clusters)
    kept = min(size, clusters)
    assert torch.equal(found.assignment[0, found.centers[0, :kept]], torch.arange(kept))
    assert found.centers[0, :kept].unique().numel() == kept
    score = found.score[0, found.centers[0, :kept]]
    assert (score[1:] <= score[:-1]).all()


def test_the_same_tokens_always_give_the_same_clusters() -> None:
    tokens = repeated_bag(0, 300, 8, 40)
    assert equal(density_peaks(tokens, 5), density_peaks(tokens.clone(), 5))


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_empty_batches_and_bags_have_a_result(shape: tuple[int, int, int]) -> None:
    found = density_peaks(torch.zeros(shape), 2)
    assert found.assignment.shape == found.score.shape == shape[:2]
    assert (found.centers == -1).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy, which has an opinion on NaN
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_overflowed_tokens_do_not_stop_a_run(backend: str, garbage: float, device: str) -> None:
    # Mixed precision skips the step afterwards; until then the forward pass has to come through.
    tokens = torch.randn(1, 40, 4)
    tokens[0, 3] = garbage
    found = find(tokens, 2, backend=backend, device=device)
    assert ((found.assignment >= 0) & (found.assignment < 2)).all()
    find(torch.full_like(tokens, garbage), 2, backend=backend, device=device)
