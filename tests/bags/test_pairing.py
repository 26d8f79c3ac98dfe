"""Tiles of two magnifications are paired by the tissue that they show."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.bags import pair_magnifications


def tiles(count: int, size: int, seed: int) -> torch.Tensor:
    """Corners of tiles anywhere, also overlapping ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6 * size, (count, 2), generator=generator)


def found(pairs: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[int, int]]:
    return list(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))


def test_four_tiles_lie_in_one_of_half_the_magnification():
    small = 448 * torch.cartesian_prod(torch.arange(6), torch.arange(4))
    large = 896 * torch.cartesian_prod(torch.arange(3), torch.arange(2))
    pairs = pair_magnifications(large, 896, small, 448)
    assert torch.bincount(pairs.first).tolist() == [4] * 6
    assert pairs.second.sort().values.tolist() == list(range(24))
    assert torch.equal(small[pairs.second] // 896 * 896, large[pairs.first])


@given(
    counts=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
)
def test_pairs_are_those_whose_smaller_center_lies_in_the_larger_tile(counts, sizes, seed):
    coords = [tiles(count, size, seed + n) for n, (count, size) in enumerate(zip(counts, sizes, strict=True))]
    large = int(sizes[1] > sizes[0])
    expected = []
    for row, corner in enumerate(coords[large].tolist()):
        for other, place in enumerate(coords[1 - large].tolist()):
            center = [value + sizes[1 - large] / 2 for value in place]
            if all(low <= value < low + sizes[large] for low, value in zip(corner, center, strict=True)):
                expected.append((other, row) if large else (row, other))
    pairs = pair_magnifications(coords[0], sizes[0], coords[1], sizes[1])
    assert found(pairs) == sorted(expected)


@given(seed=st.integers(0, 99), shift=st.integers(-500, 500))
def test_pairs_do_not_depend_on_the_order_of_the_magnifications_or_on_the_origin(seed, shift):
    a, b = tiles(9, 8, seed), tiles(12, 4, seed + 1)
    pairs = found(pair_magnifications(a, 8, b, 4))
    assert sorted((row, other) for other, row in found(pair_magnifications(b, 4, a, 8))) == pairs
    assert found(pair_magnifications(a + shift, 8, b + shift, 4)) == pairs


def test_a_tile_on_the_border_belongs_to_one_neighbor():
    large, small = torch.tensor([[0, 0], [8, 0]]), torch.tensor([[6, 0]])  # its center is at 8
    assert found(pair_magnifications(large, 8, small, 4)) == [(1, 0)]


def test_wrong_coordinates_and_sizes_are_refused():
    coords = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"coords_b must have shape \[N, 2\], got \[3\]"):
        pair_magnifications(coords, 8, coords[:, 0], 4)
    with pytest.raises(ValueError, match="coords_a must be finite, got NaN or infinity"):
        pair_magnifications(coords * torch.nan, 8, coords, 4)
    with pytest.raises(ValueError, match=r"size_b must lie in \(0, inf\], got 0"):
        pair_magnifications(coords, 8, coords, 0)
    with pytest.raises(TypeError, match="coords_a must be a tensor"):
        pair_magnifications([[0, 0]], 8, coords, 4)
