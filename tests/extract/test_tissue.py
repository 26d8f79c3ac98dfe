"""Tissue is what has color, and shares of tiles are counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.extract import tissue_mask, tissue_share
from tests.support.slide_images import GLASS, PINK, glass, speckled


def test_colored_pixels_on_glass_are_tissue():
    picture = glass(40, 60)
    picture[10:30, 20:50] = PINK
    mask = tissue_mask(picture)
    assert mask[10:30, 20:50].all()
    assert mask.sum() == 20 * 30


def test_pale_tissue_on_tinted_glass_is_told_apart():
    picture = np.full((40, 40, 3), (250, 245, 229), dtype=np.uint8)  # 21 of 255, more than the least threshold
    picture[:, 20:] = (235, 190, 215)
    mask = tissue_mask(picture)
    assert mask[:, 20:].all()
    assert not mask[:, :20].any()


def test_noisy_glass_alone_has_no_tissue_and_tissue_alone_is_not_split():
    noise = np.random.default_rng(0).integers(-4, 5, size=(50, 50, 3))
    assert not tissue_mask((glass(50, 50) + noise).astype(np.uint8)).any()
    assert tissue_mask(speckled(64, 64)).mean() > 0.9


@pytest.mark.parametrize("color", [(0, 0, 0), (20, 22, 19), (120, 118, 121), (255, 255, 255), GLASS])
def test_gray_is_no_tissue(color):
    picture = glass(8, 8)
    picture[2:5, 2:5] = color
    assert not tissue_mask(picture).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_the_share_is_the_mean_of_the_pixels_of_the_mask(seed, rows, columns, side):
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, columns)) < 0.5
    corners = generator.integers(0, (columns, rows), size=(5, 2))
    shares = tissue_share(mask, 10.0, torch.from_numpy(corners) * 10, 10 * side)
    expected = [mask[y : y + side, x : x + side].mean() for x, y in corners]
    np.testing.assert_allclose(shares.numpy(), expected, rtol=1e-6)


def test_a_tile_smaller_than_a_pixel_of_the_mask_has_the_share_of_that_pixel():
    mask = np.array([[True, False]])
    corners = torch.tensor([[0, 0], [4, 0], [12, 0], [19, 0]])
    assert tissue_share(mask, 10.0, corners, 1).tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"corners must have shape \[N, 2\]"):
        tissue_share(mask, 10.0, torch.zeros(3), 1)
