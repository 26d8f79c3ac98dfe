"""The kernels find the clusters of the reference."""

import importlib
import re

import pytest
import torch

from disentangled_mil.ops import density_peaks
from tests.support.density_peaks import (
    equal,
    find,
    kernels,
    needs_triton,
    random_bags,
    repeated_bag,
)

runtime = importlib.import_module("disentangled_mil.ops._triton_runtime")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distinct", [1, 7, 100_000])
@pytest.mark.parametrize("size", [1, 63, 130])
def test_kernels_find_the_clusters_of_the_reference(size: int, distinct: int, dtype: torch.dtype, device: str) -> None:
    tokens = repeated_bag(size, size, 17, min(distinct, size), dtype)
    # Three neighbors of random tokens: with two, tokens that are each other's nearest have densities that are equal
    # but for rounding.
    dense, found = (find(tokens, 4, neighbors=3, backend=backend, device=device) for backend in ("reference", "triton"))
    assert equal(found[:2], dense[:2])
    torch.testing.assert_close(found.score, dense.score)


@needs_triton
@pytest.mark.parametrize("neighbors", range(1, 9))
def test_kernels_equal_the_reference_bit_for_bit_where_distances_are_exact(neighbors: int, device: str) -> None:
    # Whole numbers along a diagonal have distances without rounding, most of them tied. Sizes of one tile and of
    # several, in one segment and in more; fewer tokens than neighbors; a cluster for every token.
    for size, width, clusters in [(1, 1, 1), (3, 4, 5), (63, 1, 4), (64, 16, 64), (130, 4, 3), (300, 1, 7)]:
        for dtype in (torch.float32, torch.float64):
            tokens = random_bags(size, 1, size, 1, dtype=dtype).mul(size / 4).round().expand(-1, -1, width)
            dense, found = (
                find(tokens, clusters, neighbors=neighbors, backend=backend, device=device)
                for backend in ("reference", "triton")
            )
            assert equal(found, dense)


@needs_triton
@pytest.mark.parametrize("programs", [1, 1000])
def test_into_how_many_segments_kernels_cut_a_bag_shows_nowhere(
    programs: int, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    tokens = random_bags(0, 1, 300, 8, dtype=torch.float32)
    expected = find(tokens, 5, backend="triton", device=device)
    monkeypatch.setattr(kernels(), "_PROGRAMS", programs)
    assert equal(find(tokens, 5, backend="triton", device=device), expected)


@needs_triton
def test_kernels_refuse_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
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
