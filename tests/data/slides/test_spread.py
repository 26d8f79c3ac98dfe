"""Of a large slide some tiles are read, spread evenly over its tissue, and never silently."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.data.slides import read_bag
from disentangled_mil.data.slides._spread import spread_rows
from tests.support import slides

MESSAGE = "slides with more tiles than max_tokens are read in part, spread evenly over the tissue"


@given(count=st.integers(1, 200), most=st.integers(1, 250), placed=st.booleans(), seed=st.integers(0, 999))
def test_exactly_the_largest_number_of_different_tiles_is_chosen_by_the_seed_alone(count, most, placed, seed):
    coords = np.random.default_rng(seed).integers(0, 20, (count, 2)) if placed else None
    rows = spread_rows(count, most, coords, seed)
    assert len(rows) == min(count, most)
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < count
    assert np.array_equal(rows, spread_rows(count, most, coords, seed))


@given(kept=st.integers(4, 900), seed=st.integers(0, 999))
def test_every_quarter_of_the_tissue_keeps_its_share_up_to_one_tile(kept, seed):
    generator = np.random.default_rng(seed)
    cells = generator.permutation(64 * 64)[:1000]
    coords = np.stack([cells % 64, cells // 64], axis=1)
    coords[:2] = [[0, 0], [63, 63]]
    quarter = (coords // 32) @ [1, 2]
    chosen = quarter[spread_rows(1000, kept, coords, seed)]
    for name in range(4):
        assert abs((chosen == name).sum() - kept / 1000 * (quarter == name).sum()) < 2


def test_tiles_on_one_place_can_be_spread():
    assert len(spread_rows(5, 2, np.zeros((5, 2), "int64"), 0)) == 2


def test_a_large_slide_is_read_in_part_with_a_message(tmp_path):
    features = np.arange(900, dtype="float16").reshape(300, 3)
    coords = np.stack([np.arange(300) % 20, np.arange(300) // 20], axis=1) * slides.TILE
    path = slides.trident(tmp_path, "slide", features, coords)
    with pytest.warns(UserWarning, match=MESSAGE):
        bag, source = read_bag(path, max_tokens=75, seed=1)
    rows = (bag.patches[0, :, 0] / 3).long()
    assert torch.equal(bag.patches[0], torch.from_numpy(features)[rows])
    cells = torch.from_numpy(coords // slides.TILE)[rows]
    assert torch.equal(bag.grid.cells[0], cells - cells.amin(0))
    assert source.tokens == 300
    assert read_bag(path, max_tokens=300).bag.patches.shape == (1, 300, 3)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        read_bag(path, max_tokens=0)


def test_the_lattice_of_a_slide_does_not_depend_on_the_chosen_tiles(tmp_path):
    coords = np.stack([np.arange(300) % 20, np.arange(300) // 20], axis=1) * slides.TILE
    path = slides.write_hdf5(tmp_path / "slide.h5", features=np.ones((300, 3)), coords=coords)
    with pytest.warns(UserWarning, match=MESSAGE):
        bag, source = read_bag(path, max_tokens=4)
    assert source.tile == slides.TILE
    assert max(max(shape) for shape in bag.grid.shapes) > 4


def test_slides_of_one_bag_share_the_cap_in_proportion(tmp_path):
    paths = [
        slides.write_hdf5(tmp_path / f"{count}.h5", features=np.full((count, 1), count, "float32"))
        for count in (10, 60, 130)
    ]
    with pytest.warns(UserWarning, match=MESSAGE):
        bag, source = read_bag(*paths, max_tokens=20)
    assert torch.unique(bag.patches, return_counts=True)[1].tolist() == [1, 6, 13]
    assert source.tokens == 200


def test_augmented_tiles_are_left_out_before_the_cap(tmp_path):
    flags = np.arange(100) >= 50
    path = slides.write_hdf5(tmp_path / "slide.h5", feats=np.arange(100.0)[:, None], augmented=flags)
    with pytest.warns(UserWarning, match=MESSAGE):
        bag, _ = read_bag(path, drop_augmented=True, max_tokens=20)
    assert bag.patches.shape == (1, 20, 1)
    assert bag.patches.max() < 50
