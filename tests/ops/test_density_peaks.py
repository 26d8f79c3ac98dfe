"""Density peaks against golden numbers, hand-computed bags and a loop in numpy; searches against the dense matrix."""

import importlib
import itertools
import math
import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops import density_peaks
from disentangled_mil.ops.density_peaks import DensityPeaks

package, streaming, runtime = (
    importlib.import_module(f"disentangled_mil.ops.{name}")
    for name in ("density_peaks", "density_peaks._streaming", "_triton_runtime")
)

needs_triton = pytest.mark.skipif(not runtime.available(), reason="needs Triton, which is not installed")
BACKENDS = ["reference", "streaming", pytest.param("triton", marks=needs_triton)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
seeds = st.integers(0, 2**31 - 1)


def find(tokens: Tensor, clusters: int, *, mask: Tensor | None = None, backend: str, **options: int) -> DensityPeaks:
    """``density_peaks`` of tensors on the CPU, by kernels on a GPU where there is one."""
    if backend == "triton":
        tokens, mask = tokens.to(DEVICE), None if mask is None else mask.to(DEVICE)
    found = density_peaks(tokens, clusters, mask=mask, backend=backend, **options)
    return DensityPeaks(*(part.cpu() for part in found))


def kernels() -> ModuleType:
    """The module of the kernels, which imports Triton."""
    return importlib.import_module("disentangled_mil.ops.density_peaks._triton")


def random_bags(seed: int, bags: int, size: int, width: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(bags, size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def repeated_bag(seed: int, size: int, width: int, distinct: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A bag that draws its tokens, with repetition, from a few."""
    tokens = random_bags(seed, 1, distinct, width, dtype=dtype)
    return tokens[:, torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed + 1))]


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


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
def test_clusters_are_the_released_ones(golden: Callable[[str], dict[str, Tensor]], case: str, backend: str) -> None:
    stored = golden(case)
    mask = stored["mask"].bool()
    found = find(stored["tokens"], int(stored["num_clusters"]), neighbors=int(stored["k"]), mask=mask, backend=backend)
    assert torch.equal(found.assignment[mask], stored["assignment"][mask])
    assert (found.assignment[~mask] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bag_worked_out_by_hand(backend: str) -> None:
    tokens = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [12.0]]], dtype=torch.float64)
    found = find(tokens, 2, neighbors=2, backend=backend)
    assert found.assignment.tolist() == [[0, 0, 0, 1, 1]]
    assert found.centers.tolist() == [[0, 3]]
    log_density = torch.tensor([[-0.5, -0.5, -0.5, -2.0, -2.0]], dtype=torch.float64)
    gap = torch.tensor([[12.0, 1.0, 1.0, 8.0, 2.0]], dtype=torch.float64)  # equally dense: the lower index is denser
    torch.testing.assert_close(found.score, log_density + gap.log())


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 40), clusters=st.integers(1, 6), neighbors=st.integers(1, 8))
def test_clusters_are_those_of_the_definition(
    backend: str, seed: int, size: int, clusters: int, neighbors: int
) -> None:
    tokens = random_bags(seed, 1, size, 4)
    found = find(tokens, clusters, neighbors=neighbors, backend=backend)
    assignment, centers = cluster_by_loops(tokens[0].numpy(), clusters, neighbors)
    assert found.assignment[0].tolist() == assignment
    assert found.centers[0].tolist() == centers + [-1] * (clusters - size)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_follow_the_definition_too(backend: str) -> None:
    for seed in range(20):
        # One coordinate of whole numbers: every distance, square and sum is exact, and most are tied.
        tokens = random_bags(seed, 1, 24, 1).mul(3).round()
        found = find(tokens, 5, neighbors=4, backend=backend)
        assignment, centers = cluster_by_loops(tokens[0].numpy(), 5, 4)
        assert found.assignment[0].tolist() == assignment
        assert found.centers[0].tolist() == centers


@pytest.mark.parametrize("size", [1, 2, 63, 1000])
@pytest.mark.parametrize("distinct", [1, 7, 100_000])
def test_streaming_equals_the_reference_bit_for_bit(size: int, distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_TILE_BYTES", 8 * 300 * max(size, 1))  # several ragged tiles
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tokens = repeated_bag(size, size, 16, min(distinct, size), dtype)
        assert equal(*(find(tokens, 4, backend=backend) for backend in ("reference", "streaming")))


@settings(max_examples=25)
@given(
    seed=seeds,
    size=st.integers(1, 70),
    width=st.sampled_from([1, 3, 33]),
    levels=st.sampled_from([1, 2, 9]),
    offset=st.sampled_from([0.0, 1e4]),
    tile=st.integers(1, 50),
)
def test_streaming_equals_the_reference_on_lattices_and_far_from_the_origin(
    seed: int, size: int, width: int, levels: int, offset: float, tile: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    lattice = torch.randint(levels, (1, size, width), generator=generator).float() + offset
    noisy = lattice + 1e-3 * torch.randn(lattice.shape, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_TILE_BYTES", 8 * size * tile)
        for tokens in (lattice, noisy, lattice.double(), noisy.double()):
            assert equal(*(find(tokens, 3, backend=backend) for backend in ("reference", "streaming")))


def adversarial_bag(name: str, size: int, width: int) -> Tensor:
    """Bags on which a matrix product says little about distances."""
    tokens = random_bags(size, 1, size, width)
    line = torch.randint(max(2, size // 3), (1, size, 1), generator=torch.Generator().manual_seed(size)).double()
    return {
        "one token": tokens[:, :1].expand(-1, size, -1),
        "two tokens": tokens[:, torch.arange(size) % min(2, size)],
        "whole numbers on a line": line.expand(-1, -1, width),
        "far from the origin": tokens + 1e4,
        "too small to square": tokens * 1e-20,
        "nearly too large to square": tokens * 1e18,
        "some far larger than others": tokens * torch.where(torch.arange(size) % 2 == 0, 1e15, 1.0)[:, None],
        "on a sphere": F.normalize(tokens, dim=-1),
    }[name]


ADVERSARIAL = [
    "one token",
    "two tokens",
    "whole numbers on a line",
    "far from the origin",
    "too small to square",
    "nearly too large to square",
    "some far larger than others",
    "on a sphere",
]


@pytest.mark.parametrize(("neighbors", "clusters"), [(1, 300), (5, 3), (8, 1)])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_streaming_equals_the_reference_where_a_matrix_product_says_little(
    name: str, neighbors: int, clusters: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        for size, width in [(1, 1), (3, 2), (64, 17), (200, 1), (200, 3)]:
            tokens = adversarial_bag(name, size, width).to(dtype)
            dense, streamed = (
                find(tokens, clusters, neighbors=neighbors, backend=backend) for backend in ("reference", "streaming")
            )
            assert equal(streamed, dense)
            assert not dense.score.isnan().any()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distinct", [1, 7, 100_000])
@pytest.mark.parametrize("size", [1, 63, 130])
def test_kernels_find_the_clusters_of_the_reference(size: int, distinct: int, dtype: torch.dtype) -> None:
    tokens = repeated_bag(size, size, 17, min(distinct, size), dtype)
    # Three neighbors of random tokens: with two, tokens that are each other's nearest have densities that are equal
    # but for rounding.
    dense, found = (find(tokens, 4, neighbors=3, backend=backend) for backend in ("reference", "triton"))
    assert equal(found[:2], dense[:2])
    torch.testing.assert_close(found.score, dense.score)


@needs_triton
@pytest.mark.parametrize("neighbors", range(1, 9))
def test_kernels_equal_the_reference_bit_for_bit_where_distances_are_exact(neighbors: int) -> None:
    # Whole numbers along a diagonal have distances without rounding, most of them tied. Sizes of one tile and of
    # several, in one segment and in more; fewer tokens than neighbors; a cluster for every token.
    for size, width, clusters in [(1, 1, 1), (3, 4, 5), (63, 1, 4), (64, 16, 64), (130, 4, 3), (300, 1, 7)]:
        for dtype in (torch.float32, torch.float64):
            tokens = random_bags(size, 1, size, 1, dtype=dtype).mul(size / 4).round().expand(-1, -1, width)
            dense, found = (
                find(tokens, clusters, neighbors=neighbors, backend=backend) for backend in ("reference", "triton")
            )
            assert equal(found, dense)


@needs_triton
@pytest.mark.parametrize("programs", [1, 1000])
def test_into_how_many_segments_kernels_cut_a_bag_shows_nowhere(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_bags(0, 1, 300, 8, dtype=torch.float32)
    expected = find(tokens, 5, backend="triton")
    monkeypatch.setattr(kernels(), "_PROGRAMS", programs)
    assert equal(find(tokens, 5, backend="triton"), expected)


def test_streaming_redoes_only_few_rows_of_ordinary_bags(monkeypatch: pytest.MonkeyPatch) -> None:
    dense_rows = []
    exact = streaming.distances

    def count(a: Tensor, b: Tensor) -> Tensor:
        dense_rows.append(len(a) if a.ndim == 2 else 0)
        return exact(a, b)

    monkeypatch.setattr(streaming, "distances", count)
    density_peaks(random_bags(0, 1, 1500, 32, dtype=torch.float32).relu(), 2, backend="streaming")
    assert sum(dense_rows) < 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bag_of_one_repeated_token_is_clustered_by_index(backend: str) -> None:
    found = find(torch.full((1, 6, 3), 0.1), 2, backend=backend)
    assert found.centers.tolist() == [[0, 1]]
    assert found.assignment.tolist() == [[0, 1, 0, 0, 0, 0]]
    assert (found.score == -math.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_densities_that_would_underflow_are_told_apart(backend: str) -> None:
    tokens = 100 * torch.tensor([[[0.0], [1.0], [2.5], [20.0], [21.0], [23.5]]])
    found = find(tokens, 2, neighbors=3, backend=backend)
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
    backend: str, seed: int, sizes: list[int], clusters: int, garbage: float
) -> None:
    # Real tokens are scattered among the padding.
    generator = torch.Generator().manual_seed(seed)
    padded = torch.full((len(sizes), 33, 5), garbage)
    mask = torch.zeros(len(sizes), 33, dtype=torch.bool)
    for bag, size in enumerate(sizes):
        place = torch.randperm(33, generator=generator)[:size].sort().values
        padded[bag, place] = torch.randn(size, 5, generator=generator)
        mask[bag, place] = True
    found = find(padded, clusters, mask=mask, backend=backend)
    assert (found.assignment[~mask] == -1).all()
    assert (found.score[~mask] == -math.inf).all()
    for bag, size in enumerate(sizes):
        alone = find(padded[bag, mask[bag]][None], clusters, backend=backend)
        place = mask[bag].nonzero().squeeze(1)
        assert torch.equal(found.assignment[bag, place], alone.assignment[0])
        assert torch.equal(found.score[bag, place], alone.score[0])
        kept = min(size, clusters)
        assert torch.equal(found.centers[bag, :kept], place[alone.centers[0, :kept]])
        assert (found.centers[bag, kept:] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 50), clusters=st.integers(1, 5))
def test_permuting_tokens_permutes_the_assignment(backend: str, seed: int, size: int, clusters: int) -> None:
    # Two tokens that are each other's nearest have the same mean of two distances; means of three do not tie.
    tokens = random_bags(seed, 1, size + 6, 6)
    order = torch.randperm(size + 6, generator=torch.Generator().manual_seed(seed))
    plain = find(tokens, clusters, neighbors=3, backend=backend)
    permuted = find(tokens[:, order], clusters, neighbors=3, backend=backend)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    tokens = random_bags(0, 2, 40, 8).to(dtype)
    found = density_peaks(tokens, 3)
    assert found.score.dtype == torch.float32
    assert equal(found, density_peaks(tokens.float(), 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str) -> None:
    tokens = random_bags(0, 1, 200, 8, dtype=torch.float32)
    plain = find(tokens, 3, backend=backend)
    with torch.autocast(DEVICE if backend == "triton" else "cpu", dtype=torch.bfloat16):
        assert equal(find(tokens, 3, backend=backend), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_tokens_are_taken(backend: str) -> None:
    tokens = random_bags(0, 2, 8, 150).transpose(1, 2)
    assert equal(find(tokens, 3, backend=backend), find(tokens.contiguous(), 3, backend=backend))


@pytest.mark.parametrize("size", [50, 200])
def test_auto_chooses_by_size_and_the_choice_shows_nowhere(size: int) -> None:
    tokens = random_bags(0, 1, size, 8)
    assert equal(density_peaks(tokens, 3), density_peaks(tokens, 3, backend="streaming"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_explicit_backend_is_never_replaced(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tokens: Tensor) -> None:
        raise AssertionError(f"{backend} was called")

    module = {"reference": lambda: package._reference, "streaming": lambda: streaming, "triton": kernels}[backend]()
    monkeypatch.setattr(module, "Distances", refuse)
    for size in (4, 200):
        tokens = torch.randn(1, size, 4)
        with pytest.raises(AssertionError, match=f"{backend} was called"):
            find(tokens, 2, backend=backend)
        for other in {"reference", "streaming"} - {backend}:
            find(tokens, 2, backend=other)


@pytest.mark.parametrize(
    ("size", "on_a_gpu", "with_triton", "chosen"),
    [
        (128, False, True, "reference"),
        (128, True, True, "reference"),
        (129, False, True, "streaming"),
        (129, True, False, "streaming"),
        (129, True, True, "triton"),
    ],
)
def test_auto_takes_kernels_for_large_bags_where_there_are_any(
    size: int, on_a_gpu: bool, with_triton: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "available", lambda: with_triton)
    assert package._fastest(SimpleNamespace(shape=(1, size, 4), is_cuda=on_a_gpu)) == chosen


@needs_triton
def test_kernels_refuse_a_cpu_on_which_nobody_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels(), "interpreted", lambda: False)
    message = 'tokens must be on a CUDA device for backend="triton", got cpu; '
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        density_peaks(torch.randn(1, 9, 4), 2, backend="triton")


def test_kernels_without_triton_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available", lambda: False)
    message = 'backend="triton" needs the package triton, which is not installed: pip install triton'
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        find(torch.randn(1, 9, 4), 2, backend="triton")
    assert (find(torch.randn(1, 200, 4), 2, backend="auto").centers >= 0).all()


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
def test_overflowed_tokens_do_not_stop_a_run(backend: str, garbage: float) -> None:
    # Mixed precision skips the step afterwards; until then the forward pass has to come through.
    tokens = torch.randn(1, 40, 4)
    tokens[0, 3] = garbage
    found = find(tokens, 2, backend=backend)
    assert ((found.assignment >= 0) & (found.assignment < 2)).all()
    find(torch.full_like(tokens, garbage), 2, backend=backend)


@pytest.mark.parametrize("seen_late", [False, True])
def test_a_product_that_is_less_precise_than_asked_for_changes_no_cluster(
    monkeypatch: pytest.MonkeyPatch, seen_late: bool
) -> None:
    right, calls = torch.addmm, itertools.count()

    def product(added: Tensor, one: Tensor, other: Tensor, *, alpha: float, out: Tensor) -> Tensor:
        if seen_late and next(calls) == 0:
            # Every other token is missed as a candidate, and no candidate tells.
            right(added, one, other, alpha=alpha, out=out)
            out[:, ::2] += 1e3
            return out
        return right(added, one.bfloat16().to(one.dtype), other.bfloat16().to(other.dtype), alpha=alpha, out=out)

    monkeypatch.setattr(streaming, "_CANDIDATES", 300)  # several blocks of rows
    tokens = random_bags(4, 1, 200, 6)
    expected = find(tokens, 5, backend="reference")
    monkeypatch.setattr(torch, "addmm", product)
    assert equal(find(tokens, 5, backend="streaming"), expected)
    assert not seen_late or next(calls) > 2


def test_only_what_is_kept_of_candidates_is_held_for_all_rows_at_once(
    allocations: Callable[[Callable[[], object]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = torch.eye(60)
    tokens = torch.cat([ones[i] + ones[i + 1 :] for i in range(59)])[None]  # all have neighbors at equal distances
    sizes = {"_CANDIDATES": 5000, "_TILE_BYTES": 1 << 16, "_TILE_ROWS": 16, "_RECHECKED_BYTES": 1 << 16}
    for name, size in sizes.items():
        monkeypatch.setattr(streaming, name, size)
    distances = 4 * 128 * tokens.shape[1]  # of the candidates of a last search
    found = allocations(lambda: find(tokens, 5, backend="streaming"))
    # Columns and distances of the neighbors' candidates, and of those of lower rank.
    assert sum(nbytes >= distances for nbytes in found) <= 4


def test_nothing_is_differentiable() -> None:
    assert not density_peaks(torch.randn(1, 9, 4, requires_grad=True), 2).score.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operator_is_well_registered(backend: str) -> None:
    device = DEVICE if backend == "triton" else "cpu"
    mask = torch.ones(2, 9, dtype=torch.bool, device=device)
    operator = torch.ops.disentangled_mil.density_peaks.default
    torch.library.opcheck(operator, (torch.randn(2, 9, 4, device=device), mask, 3, 5, backend))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_it_compiles_without_a_graph_break(backend: str) -> None:
    tokens = random_bags(0, 2, 30, 4).to(DEVICE if backend == "triton" else "cpu")
    compiled = torch.compile(lambda x: density_peaks(x, 2, backend=backend), fullgraph=True, backend="eager")
    assert equal(compiled(tokens), density_peaks(tokens, 2, backend=backend))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(3, 4)}, ValueError, r"tokens must have shape \[B, N, C\], got \[3, 4\]"),
        (
            {"tokens": torch.zeros(2, 7, 4, dtype=torch.int64)},
            TypeError,
            "tokens must be a floating-point tensor, got torch.int64",
        ),
        ({"clusters": 0}, ValueError, "clusters must be at least 1, got 0"),
        ({"clusters": 2.0}, TypeError, "clusters must be an integer, got float"),
        ({"neighbors": 0}, ValueError, "neighbors must be at least 1, got 0"),
        (
            {"mask": torch.ones(2, 5, dtype=torch.bool)},
            ValueError,
            r"mask must have shape \[B, N\] = \[2, 7\], got \[2, 5\]",
        ),
        (
            {"mask": torch.ones(2, 7)},
            TypeError,
            r"mask must be a bool tensor \(True = real token\), got torch.float32",
        ),
        (
            {"backend": "fast"},
            ValueError,
            "backend must be one of 'auto', 'reference', 'streaming', 'triton', got 'fast'",
        ),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"tokens": torch.zeros(2, 7, 4), "clusters": 2} | change
    with pytest.raises(error, match=message):
        density_peaks(**arguments)
