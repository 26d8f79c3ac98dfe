"""Tiles have their size, lie inside of the slide, and those of one magnification cover those of the next."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.bags import pair_magnifications
from disentangled_mil.extract import tile_corners, tile_side

RESOLUTIONS = st.floats(0.1, 1.0)


@pytest.mark.parametrize(
    ("magnification", "mpp", "side"),
    [
        (20, 0.5, 224),
        (10, 0.5, 448),
        (20, 0.25, 448),
        (40, 0.25, 224),
        (20, 0.2527, 444),
        (10, 0.2527, 888),
        (5, 1, 448),
    ],
)
def test_the_side_is_224_pixels_of_ten_micrometers_by_the_magnification(magnification, mpp, side):
    assert tile_side(magnification, mpp) == side


@given(RESOLUTIONS, st.floats(0.5, 8.0))
def test_the_side_is_exact_but_for_three_in_a_thousand(mpp, magnification):
    exact = 2240 / (magnification * mpp)
    assert abs(tile_side(magnification, mpp) - exact) < 0.003 * exact


@given(RESOLUTIONS, st.integers(0, 4000), st.integers(0, 4000))
def test_one_tile_of_half_the_magnification_covers_four_tiles(mpp, width, height):
    fine, coarse = tile_side(10, mpp), tile_side(5, mpp)
    assert coarse == 2 * fine
    size = width + coarse, height + coarse
    small, large = tile_corners(size, fine), tile_corners(size, coarse)
    pairs = pair_magnifications(large, coarse, small, fine)
    assert torch.bincount(pairs.first, minlength=len(large)).tolist() == [4] * len(large)
    offsets = small[pairs.second] - large[pairs.first]
    assert set(map(tuple, offsets.tolist())) == {(0, 0), (fine, 0), (0, fine), (fine, fine)}


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(50, 700))
def test_tiles_lie_inside_do_not_overlap_and_leave_less_than_a_tile(width, height, side):
    corners = tile_corners((width, height), side)
    assert len(corners) == (width // side) * (height // side)
    assert len(corners.unique(dim=0)) == len(corners)
    assert not (corners % side).any()
    assert ((corners + side) <= torch.tensor([width, height])).all()


def test_a_magnification_may_exceed_the_scan_by_a_quarter():
    assert tile_side(20, 0.625) == 179
    with pytest.raises(ValueError, match=r"magnification must be at most 19\.8, because the scan has 0\.63"):
        tile_side(20, 0.63)


@pytest.mark.parametrize("magnification", [0, -20, 0.2, 200, float("nan"), float("inf")])
def test_nonsense_magnifications_are_refused(magnification):
    with pytest.raises(ValueError, match=r"magnification must lie in \[0\.3, 100\.0\], got"):
        tile_side(magnification, 0.5)


def test_other_arguments_are_checked():
    with pytest.raises(TypeError, match="magnification must be a number, got str"):
        tile_side("20", 0.5)
    with pytest.raises(ValueError, match=r"mpp must lie in \(0, inf\], got 0"):
        tile_side(20, 0)
    with pytest.raises(ValueError, match="side must be at least 1, got 0"):
        tile_corners((10, 10), 0)
