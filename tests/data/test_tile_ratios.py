"""Tiles of magnifications are compared slide by slide, by their ratio."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.data.cohort import StoredBag
from disentangled_mil.data.slides import write_bag
from disentangled_mil.data.slides.tile_size import tile_side
from disentangled_mil.data.tile_ratios import other_ratio, usual_ratios
from tests.support.slides import clam, first_stamp, trident, write_hdf5


def lattice(side, columns=8, rows=8):
    return side * torch.cartesian_prod(torch.arange(columns), torch.arange(rows))


def slide(folder, sides, name="slide", columns=8, **options):
    """A slide without metadata at every magnification."""
    bags = {}
    for magnification, side in sides.items():
        path = folder / magnification / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        coords = lattice(side, columns)
        write_hdf5(path, features=torch.ones(len(coords), 3).numpy(), coords=coords.numpy())
        bags[magnification] = StoredBag((path,), **options)
    return bags


@settings(max_examples=15)
@given(scale=st.sampled_from([0.25, 0.5, 1, 2]), first=st.sampled_from([112, 224, 256, 448]), factor=st.integers(2, 8))
def test_the_resolution_of_a_slide_does_not_matter_and_swapped_magnifications_do(
    tmp_path_factory, scale, first, factor
):
    folder = tmp_path_factory.mktemp("slides")
    known = usual_ratios([slide(folder / "train", {"low": first * factor, "high": first})])
    assert known == {"low": factor, "high": 1}
    other = {"low": int(first * factor * scale), "high": int(first * scale)}
    assert other_ratio(slide(folder / "other", other), known) is None
    swapped = slide(folder / "swapped", {"low": other["high"], "high": other["low"]})
    assert f"got {1 / factor:.3g} times: are the folders swapped?" in (other_ratio(swapped, known) or "")


def test_the_usual_ratio_is_the_median_of_slides_that_have_all_magnifications(tmp_path):
    sides = [{"20x": 448}, {"10x": 896, "20x": 448}, {"10x": 1792, "20x": 448}, {"10x": 448, "20x": 224}]
    samples = [slide(tmp_path, each, name=f"slide{row}") for row, each in enumerate(sides)]
    assert usual_ratios(samples) == {"10x": 2, "20x": 1}
    assert usual_ratios(samples[:1]) == usual_ratios([]) == {}


@pytest.mark.parametrize("options", [{"columns": 3}, {"step": 448.0}, {"as_set": True}])
def test_few_tiles_a_given_cell_and_sets_show_no_side(tmp_path, options):
    assert other_ratio(slide(tmp_path, {"10x": 448, "20x": 896}, **options), {"10x": 2, "20x": 1}) is None


def test_slides_of_other_names_are_not_compared(tmp_path):
    bags = {**slide(tmp_path, {"10x": 448}, name="a"), **slide(tmp_path, {"20x": 896}, name="b")}
    assert other_ratio(bags, {"10x": 2, "20x": 1}) is None


def test_sides_are_those_of_metadata_and_pixels_of_tiles_are_no_unit(tmp_path):
    coords = lattice(448).numpy()
    features = torch.ones(len(coords), 3).numpy()
    assert tile_side(clam(tmp_path, "a", features, coords), metadata_alone=True).side == 448
    assert tile_side(first_stamp(tmp_path, "b", features, coords)) is None
    write_bag(tmp_path / "c.h5", torch.ones(2, 3), torch.tensor([[0, 0], [896, 0]]), step=448)
    assert tile_side(tmp_path / "c.h5", metadata_alone=True).side == 448
    stamp = {"10x": StoredBag((tmp_path / "b.h5",)), "20x": StoredBag((tmp_path / "b.h5",))}
    assert other_ratio(stamp, {"10x": 2, "20x": 1}) is None


def test_overlapping_tiles_with_and_without_metadata_are_compared_by_their_strides(tmp_path):
    (tmp_path / "20x").mkdir()
    coords = lattice(224)
    told = StoredBag((trident(tmp_path / "20x", "slide", torch.ones(len(coords), 3).numpy(), coords.numpy()),))
    untold = slide(tmp_path, {"10x": 448})["10x"]  # the stride of tiles of 896
    assert tile_side(told.paths[0]).side == 448
    assert usual_ratios([{"10x": untold, "20x": told}]) == {"10x": 2, "20x": 1}
    assert other_ratio({"10x": untold, "20x": told}, {"10x": 2, "20x": 1}) is None
    assert "got 0.5 times" in (other_ratio({"10x": told, "20x": untold}, {"10x": 2, "20x": 1}) or "")


@pytest.mark.parametrize("options", [{"as_set": True}, {"step": 448.0}])
def test_coordinates_that_a_bag_does_not_use_are_not_read_beside_a_stride(tmp_path, options):
    """One magnification has metadata and coordinates off any lattice, the other coordinates alone."""
    bags = slide(tmp_path, {"high": 224})
    path = tmp_path / "low" / "slide.h5"
    path.parent.mkdir()
    write_bag(path, torch.ones(64, 3), 1000 * torch.rand(64, 2, generator=torch.Generator().manual_seed(0)), step=448)
    bags["low"] = StoredBag((path,), **options)
    assert tile_side(path, metadata_alone=True) is not None
    assert usual_ratios([bags]) == {}
