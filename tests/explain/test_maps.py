import json
import warnings

import geojson
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from disentangled_mil.data.slides import read_bag
from disentangled_mil.explain import (
    TileMap,
    combine_maps,
    draw_map,
    region_agreement,
    write_anndata,
    write_geojson,
)
from disentangled_mil.explain.figure import _extent
from disentangled_mil.explain.thumbnail import Thumbnail

LEVEL0 = "level-0 pixels"


def tile_map(coords, side, *, unit=LEVEL0, **columns) -> TileMap:
    """A map of tiles of one size, whose classes are tumor and tme if both are columns."""
    coords = torch.tensor(coords)
    values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    classes = ("tumor", "tme") if {"tumor", "tme"} <= set(values) else ()
    return TileMap(coords, torch.full((len(coords),), side), values, classes, unit=unit)


@pytest.fixture
def fine() -> TileMap:
    return tile_map([[0, 0], [448, 0], [1344, 0]], 448, tumor=[1, 0, 0], tme=[0, 1, 1], attention=[2, 1, 0])


@pytest.fixture
def coarse() -> TileMap:
    """The second tile holds none of the fine ones."""
    return tile_map([[0, 0], [1792, 0]], 896, tumor=[0, 1], tme=[1, 0], attention=[0.5, 1.5])


def test_tiles_are_the_finest_and_coarser_ones_without_them(fine, coarse):
    combined = combine_maps({"10x": coarse, "20x": fine})
    assert combined.coords.tolist() == [[0, 0], [448, 0], [1344, 0], [1792, 0]]
    assert combined.size.tolist() == [448, 448, 448, 896]
    assert combined.columns["attention_10x"][[0, 1, 3]].tolist() == [0.5, 0.5, 1.5]
    assert combined.columns["attention_10x"][2].isnan()
    assert combined.columns["attention"].tolist() == [1.25, 0.75, 0, 1.5]
    assert combined.columns["tumor"].tolist() == [0.5, 0, 0, 1]


def test_the_class_of_a_tile_is_that_of_the_finest_magnification_that_covers_it(fine, coarse):
    combined = combine_maps({"10x": coarse, "20x": fine})
    assert combined.table()["class"].tolist() == ["tumor", "tme", "tme", "tumor"]


def test_the_order_of_magnifications_does_not_matter(fine, coarse):
    one, other = combine_maps({"10x": coarse, "20x": fine}), combine_maps({"20x": fine, "10x": coarse})
    assert torch.equal(one.coords, other.coords)
    assert torch.equal(one.columns["attention"], other.columns["attention"])


def test_maps_in_different_units_are_not_combined(fine):
    other = tile_map([[0, 0]], 896, unit="micrometers", attention=[1])
    with pytest.raises(ValueError, match="maps must share the unit of their coordinates, got level-0 pixels and micro"):
        combine_maps({"10x": other, "20x": fine})


def test_geojson_has_the_fields_that_qupath_reads(fine, coarse, tmp_path):
    combined = combine_maps({"10x": coarse, "20x": fine})
    write_geojson(tmp_path / "slide.geojson", combined)
    text = (tmp_path / "slide.geojson").read_text()
    collection = geojson.loads(text)
    assert isinstance(collection, geojson.FeatureCollection)
    assert collection.is_valid, collection.errors()
    assert len(collection["features"]) == len(combined)
    for feature in json.loads(text)["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["geometry"]["type"] == "Polygon"
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert set(properties["classification"]) == {"name", "color"}
        assert all(isinstance(part, int) and 0 <= part <= 255 for part in properties["classification"]["color"])
        assert all(isinstance(value, float) for value in properties["measurements"].values())
    # A number that is not known is no measurement, because JSON has no NaN.
    assert "attention_10x" not in json.loads(text)["features"][2]["properties"]["measurements"]


def test_geojson_leaves_single_heads_out_unless_they_are_chosen(tmp_path):
    tiles = tile_map([[0, 0]], 448, attention=[1], attention_head1=[1])
    write_geojson(tmp_path / "a.geojson", tiles)
    write_geojson(tmp_path / "b.geojson", tiles, measurements=["attention_head1"])
    names = [
        list(json.loads((tmp_path / f"{name}.geojson").read_text())["features"][0]["properties"]["measurements"])
        for name in "ab"
    ]
    assert names == [["attention"], ["attention_head1"]]


def test_geojson_in_micrometers_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(
        ValueError, match="tiles must have coordinates in level-0 pixels, as QuPath reads them, got micr"
    ):
        write_geojson(tmp_path / "a.geojson", tile_map([[0, 0]], 112, unit="micrometers", attention=[1]))
    assert not list(tmp_path.iterdir())


def test_anndata_is_read_back_as_a_slide(fine, tmp_path):
    anndata = pytest.importorskip("anndata")
    features = torch.arange(6.0).reshape(3, 2)
    write_anndata(tmp_path / "slide.h5ad", fine, features, mpp=0.5)
    bag, source = read_bag(tmp_path / "slide.h5ad")
    assert torch.equal(bag.patches[0], features)
    assert bag.grid.cells[0].tolist() == [[0, 0], [1, 0], [3, 0]]
    assert (source.tile, source.mpp, source.unit) == (448, 0.5, LEVEL0)
    content = anndata.read_h5ad(tmp_path / "slide.h5ad")
    names = content.uns["spatialdata_attrs"]
    assert set(content.obs[names["region_key"]]) == {names["region"]} == {"tiles"}
    assert content.obs[names["instance_key"]].is_unique
    assert content.obs["class"].tolist() == ["tumor", "tme", "tme"]
    assert content.obsm["spatial"].tolist() == fine.coords.tolist()


def test_anndata_of_tiles_of_two_sizes_is_refused(fine, coarse, tmp_path):
    combined = combine_maps({"10x": coarse, "20x": fine})
    with pytest.raises(ValueError, match=r"tiles must have one size, got \[448.0, 896.0\]"):
        write_anndata(tmp_path / "slide.h5ad", combined, torch.ones(4, 2))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_picture_shows_more_than_one_color_for_maps_that_differ(fine, tmp_path, count):
    chosen = {name: values[:count] for name, values in fine.columns.items()}
    tiles = TileMap(fine.coords[:count], fine.size[:count], chosen, fine.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if count == 1 else "error")
        draw_map(tmp_path / "map.png", tiles, ["attention"], title="slide")
    picture = imread(tmp_path / "map.png")
    assert picture.shape[0] > 100
    assert picture[..., :3].std() > 0.01


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, 1], "slide: attention is 1 on all tiles, so its map has one color"), ([torch.nan] * 2, "has no number")],
)
def test_a_map_of_one_color_is_said_so(tmp_path, values, message):
    with pytest.warns(UserWarning, match=message):
        draw_map(tmp_path / "a.png", tile_map([[0, 0], [448, 0]], 448, attention=values), ["attention"], title="slide")


def test_a_picture_shows_a_tile_of_tissue_around_the_map_but_nothing_beyond_the_slide(fine):
    image = Thumbnail(np.zeros((100, 190, 3), dtype=np.uint8), scale=10.0, mpp=None)  # 1900 x 1000 level-0 pixels
    assert _extent(fine, image) == (0, 0, 1900, 896)
    assert _extent(fine, None) == (0, 0, 1792, 448)


def test_an_unknown_column_and_nothing_to_draw_are_refused(tmp_path):
    tiles = tile_map([[0, 0]], 448, attention=[1])
    with pytest.raises(ValueError, match="columns must be among attention, got 'weight'"):
        draw_map(tmp_path / "a.png", tiles, ["weight"], title="slide")
    with pytest.raises(ValueError, match="columns must name at least one column of a map without classes, got none"):
        draw_map(tmp_path / "a.png", tiles, [], title="slide")


def test_agreement_is_that_of_the_definitions():
    truth = torch.tensor([True, True, True, False, False])
    found = region_agreement(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]), truth)
    assert found["dice"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["dice_all"] == pytest.approx(2 * 3 / (5 + 3))
    assert found["auroc"] == pytest.approx((2 * 0.5 + 2 * 1 + 0 * 0.5 + 0.5) / 6)


def test_agreement_with_a_truth_of_one_value_has_no_auroc():
    found = region_agreement(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    assert found["dice"] == 1
    assert found["auroc"] != found["auroc"]


def test_a_name_with_dollar_signs_is_no_formula(tmp_path, fine):
    draw_map(tmp_path / "map.png", fine, ["attention"], title="$x_{$")
    assert (tmp_path / "map.png").is_file()
