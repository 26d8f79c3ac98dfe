"""The streamed search equals the dense reference bit for bit, also where a matrix product says little."""

import importlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops import density_peaks
from tests.support.allocations import allocations
from tests.support.density_peaks import (
    equal,
    find,
    random_bags,
    repeated_bag,
    seeds,
)

streaming = importlib.import_module("disentangled_mil.ops.density_peaks._streaming")


@pytest.mark.parametrize("size", [1, 2, 63, 1000])
@pytest.mark.parametrize("distinct", [1, 7, 100_000])
def test_streaming_equals_the_reference_bit_for_bit(size: int, distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_TILE_BYTES", 1)
    monkeypatch.setattr(streaming, "_TILE_ROWS", 300)  # several ragged tiles
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
        patch.setattr(streaming, "_TILE_BYTES", 1)
        patch.setattr(streaming, "_TILE_ROWS", tile)
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


def test_nearly_all_rows_of_ordinary_bags_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    dense_rows = []
    exact = streaming.distances

    def count(a: Tensor, b: Tensor) -> Tensor:
        dense_rows.append(len(a) if a.ndim == 2 else 0)
        return exact(a, b)

    monkeypatch.setattr(streaming, "distances", count)
    density_peaks(random_bags(0, 1, 1500, 32, dtype=torch.float32).relu(), 2, backend="streaming")
    assert sum(dense_rows) < 30


@pytest.mark.parametrize("seen_late", [False, True])
def test_a_product_of_lower_precision_than_requested_changes_no_cluster(
    monkeypatch: pytest.MonkeyPatch, seen_late: bool
) -> None:
    right, calls = torch.addmm, itertools.count()

    def product(added: Tensor, one: Tensor, other: Tensor, *, alpha: float, out: Tensor) -> Tensor:
        if seen_late and next(calls) == 0:
            # Every other token is missed as a candidate, and no candidate of the first tile reveals it.
            right(added, one, other, alpha=alpha, out=out)
            out[:, ::2] += 1e3
            return out
        return right(added, one.bfloat16().to(one.dtype), other.bfloat16().to(other.dtype), alpha=alpha, out=out)

    for name in ("_TILE_BYTES", "_TILE_ROWS"):
        monkeypatch.setattr(streaming, name, 50)  # several tiles
    tokens = random_bags(4, 1, 200, 6)
    expected = find(tokens, 5, backend="reference")
    monkeypatch.setattr(torch, "addmm", product)
    assert equal(find(tokens, 5, backend="streaming"), expected)
    assert not seen_late or next(calls) > 2


def test_nothing_of_the_size_of_the_distance_matrix_is_held_where_no_row_settles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ones = torch.eye(60)
    tokens = torch.cat([ones[i] + ones[i + 1 :] for i in range(59)])[None]  # all have neighbors at equal distances
    monkeypatch.setattr(streaming, "_TILE_BYTES", 1 << 16)
    monkeypatch.setattr(streaming, "_TILE_ROWS", 16)
    assert max(allocations(lambda: find(tokens, 5, backend="streaming"))) <= tokens.nbytes
