"""Of a large slide some tiles are read, spread evenly over its tissue, and never silently."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.data.slides import read_bag, reads_part
from tests.support import slides

MESSAGE = "slides with more tiles than max_tokens are read in part, spread evenly over the tissue"


def test_a_large_slide_is_read_in_part_with_a_message(tmp_path):
    features = np.arange(900, dtype="float16").reshape(300, 3)
    coords = np.stack([np.arange(300) % 20, np.arange(300) // 20], axis=1) * slides.TILE
    path = slides.trident(tmp_path, "slide", features, coords)
    with pytest.warns(UserWarning, match=MESSAGE):
        bag, source = read_bag(path, max_tokens=75, seed=1)
    rows = (bag.patches[0, :, 0] / 3).long()
    assert torch.equal(bag.patches[0], torch.from_numpy(features)[rows])
    assert bag.grid.shapes in {((10, 8),), ((11, 8),), ((10, 9),)}  # a quarter of the tiles, so cells are twice as wide
    cells = torch.from_numpy(coords // slides.TILE)[rows]
    assert torch.equal(bag.grid.cells[0], ((cells - cells.amin(0)) / 2 + 0.5).long())
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
    assert bag.grid.cells.amax() <= 2  # cells as wide as the square root of 300 / 4 tiles


@pytest.mark.filterwarnings("ignore:slides with more tiles")
def test_a_few_tiles_of_a_large_slide_are_no_error(tmp_path):
    coords = np.stack([np.arange(20_000) % 200, np.arange(20_000) // 200], axis=1) * slides.TILE
    path = slides.trident(tmp_path, "slide", np.ones((20_000, 1), "float16"), coords)
    assert read_bag(path, max_tokens=10).bag.grid.cells.amax() <= 4


def test_cells_do_not_grow_for_augmented_tiles_that_are_left_out(tmp_path):
    cells = np.arange(100) // 2
    path = slides.write_hdf5(
        tmp_path / "slide.h5",
        feats=np.arange(100.0)[:, None],
        coords=np.stack([cells % 10, cells // 10], axis=1) * slides.TILE,
        augmented=np.arange(100) % 2 == 1,
    )
    assert read_bag(path, drop_augmented=True, max_tokens=50).bag.grid.shapes == ((10, 5),)


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


def test_a_slide_whose_share_is_no_tile_is_left_out(tmp_path):
    paths = [
        slides.write_hdf5(tmp_path / f"{count}.h5", features=np.full((count, 1), count, "float32")) for count in (1, 99)
    ]
    assert read_bag(*paths, max_tokens=20, quiet=True).bag.patches.unique().tolist() == [99]


@settings(max_examples=20)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=3), most=st.integers(1, 20), drop=st.booleans())
def test_tiles_are_left_out_exactly_where_it_is_said_so(tmp_path_factory, counts, most, drop):
    folder = tmp_path_factory.mktemp("slides")
    paths = [
        slides.write_hdf5(folder / f"{row}.h5", feats=np.ones((2 * count, 1)), augmented=np.arange(2 * count) % 2 == 1)
        for row, count in enumerate(counts)
    ]
    whole = read_bag(*paths, drop_augmented=drop).bag.patches.shape[1]
    part = read_bag(*paths, drop_augmented=drop, max_tokens=most, quiet=True).bag.patches.shape[1]
    assert reads_part(paths, most, drop_augmented=drop) == (part < whole)
    assert not reads_part(paths, None, drop_augmented=drop)
