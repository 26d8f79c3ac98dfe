"""Slides in HDF5 files: every layout is read, every defect is named."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.bags import TokenSet, lattice_step
from disentangled_mil.data.cohort import StoredBag
from disentangled_mil.data.slides import check_places, read_bag, slide_source, tile_places, write_bag
from disentangled_mil.data.slides._hdf5 import open_hdf5


def write(path: Path, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def features(count: int = 4, width: int = 3, dtype: str = "float32") -> np.ndarray:
    return np.arange(count * width).reshape(count, width).astype(dtype)


COORDS = np.array([[0, 0], [448, 0], [0, 448], [896, 448]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_written_slide_reads_back_exactly_in_its_stored_type(tmp_path, dtype):
    stored, coords = torch.from_numpy(features(dtype=dtype)), torch.from_numpy(COORDS)
    write_bag(tmp_path / "slide.h5", stored, coords, step=448)
    bag, _ = read_bag(tmp_path / "slide.h5")
    assert bag.patches.dtype == stored.dtype
    assert torch.equal(bag.patches[0], stored)
    assert torch.equal(bag.grid.cells[0], coords // 448)
    assert bag.grid.shapes == ((3, 2),)


@settings(max_examples=20)
@given(
    count=st.integers(1, 20),
    width=st.integers(1, 5),
    step=st.sampled_from([None, 7, 224.5]),
    seed=st.integers(0, 99),
)
def test_round_trip_keeps_every_patch_at_its_place(tmp_path_factory, count, width, step, seed):
    path = tmp_path_factory.mktemp("bags") / "slide.h5"
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, width, generator=generator)
    coords = torch.randint(0, 9, (count, 2), generator=generator) * (step or 1)
    write_bag(path, values, coords, step=step)
    bag, _ = read_bag(path)
    assert torch.equal(bag.patches[0], values)
    cells = coords / (step or lattice_step(coords) or 1.0)
    assert torch.equal(bag.grid.cells[0], (cells - cells.amin(0) + 0.5).floor().long())
    assert slide_source(path).width == width


@pytest.mark.parametrize("name", ["features", "feats"])
def test_both_names_of_features_and_a_leading_axis_of_one_are_understood(tmp_path, name):
    path = write(tmp_path / "slide.h5", **{name: features()[None], "coords": COORDS[None]})
    bag, _ = read_bag(path)
    assert torch.equal(bag.patches, torch.from_numpy(features()[None]))
    assert torch.equal(bag.grid.cells[0], torch.from_numpy(COORDS // 448))
    assert slide_source(path).width == 3


def test_datasets_can_be_named(tmp_path):
    path = write(tmp_path / "slide.h5", uni=features(), places=COORDS, features=features(2, 9))
    bag, _ = read_bag(path, features="uni", coords="places")
    assert bag.patches.shape == (1, 4, 3)
    assert bag.grid.shapes == ((3, 2),)
    assert slide_source(path, features="uni").width == 3


def test_a_slide_without_coordinates_lies_on_a_square(tmp_path):
    assert isinstance(read_bag(write(tmp_path / "slide.h5", features=features())).bag.grid, TokenSet)


@pytest.mark.parametrize("name", ["coords", "coordinates"])
def test_both_names_of_coordinates_are_understood(tmp_path, name):
    assert read_bag(write(tmp_path / "slide.h5", features=features(), **{name: COORDS})).bag.grid.shapes == ((3, 2),)


def test_coordinates_under_another_name_are_not_passed_over(tmp_path):
    path = write(tmp_path / "slide.h5", features=features(), Coords_level0=COORDS)
    name = "Coords_level0"
    message = (
        rf"slide\.h5: coordinates must be in a dataset coords or coordinates, got {name}; .* by coords = '{name}'$"
    )
    with pytest.raises(ValueError, match=message):
        read_bag(path)
    assert read_bag(path, coords="Coords_level0").bag.grid.shapes == ((3, 2),)
    assert read_bag(path, path).bag.patches.shape == (1, 8, 3)  # which takes none


@pytest.mark.parametrize("name", ["meta/coords", "positions", "tiles/Location_xy"])
def test_coordinates_in_a_group_or_under_a_related_name_are_not_passed_over(tmp_path, name):
    path = write(tmp_path / "slide.h5", features=features(), **{name: COORDS})
    with pytest.raises(
        ValueError, match=rf"slide\.h5: coordinates must be in a dataset .*, got {name}; name it by coords = "
    ):
        read_bag(path)
    assert read_bag(path, coords=name).bag.grid.shapes == ((3, 2),)


def test_other_datasets_are_no_coordinates(tmp_path):
    path = write(
        tmp_path / "slide.h5", features=features(), coord_unit=b"um", coord_extent=[9, 9], stain=np.ones((4, 2))
    )
    assert isinstance(read_bag(path).bag.grid, TokenSet)


@pytest.mark.parametrize(("overlap", "shape"), [(0, (3, 2)), (112, (5, 3))])
def test_the_grid_step_is_the_stored_patch_size_less_the_overlap(tmp_path, overlap, shape):
    path = write(tmp_path / "slide.h5", features=features(), coords=COORDS)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(patch_size=224, patch_size_level0=448, overlap=overlap)
    assert read_bag(path).bag.grid.shapes == (shape,)
    assert read_bag(path, step=448).bag.grid.shapes == ((3, 2),)


@pytest.mark.parametrize("side", [np.array([448]), np.array([[448.0]]), np.float16(448), np.uint16(448), "448"])
def test_the_stored_patch_size_may_have_any_type_of_number(tmp_path, side):
    path = write(tmp_path / "slide.h5", features=features(), coords=COORDS * 2)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(patch_size_level0=side, patch_size=side, overlap=np.array([0]))
    assert read_bag(path).bag.grid.shapes == ((5, 3),)


@pytest.mark.parametrize(
    "attributes",
    [
        {"patch_size_level0": 0},
        {"patch_size_level0": -448},
        {"patch_size_level0": "abc"},
        {"patch_size_level0": np.nan},
        {"patch_size_level0": np.array([448, 448])},
        {"patch_size_level0": h5py.Empty("f4")},
        {"patch_size_level0": 448, "overlap": "none"},
        {"patch_size_level0": 448, "overlap": 448},
        {"patch_size_level0": 448, "overlap": 64, "patch_size": 0},
    ],
)
def test_stored_sizes_that_give_no_cell_are_refused_unless_the_side_is_given(tmp_path, attributes):
    path = write(tmp_path / "slide.h5", features=features(), coords=COORDS)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(attributes)
    with pytest.raises(ValueError, match=r"slide\.h5: attributes of coords must give a positive side .*, got p"):
        read_bag(path)
    assert read_bag(path, step=448).bag.grid.shapes == ((3, 2),)
    assert read_bag(path, as_set=True).bag.patches.shape == (1, 4, 3)


@pytest.mark.parametrize("name", ["features", "coords", "augmented"])
def test_empty_datasets_are_refused(tmp_path, name):
    path = write(tmp_path / "slide.h5", **{"features": features(), "coords": COORDS, name: h5py.Empty("f4")})
    with pytest.raises(ValueError, match=rf"slide\.h5: {name} must be an array, got an empty dataset"):
        read_bag(path, drop_augmented=True)


def test_big_endian_and_small_integer_storage_is_read(tmp_path):
    path = write(tmp_path / "slide.h5", features=features().astype(">f4"), coords=COORDS.astype("uint16"))
    bag, _ = read_bag(path)
    assert torch.equal(bag.patches[0], torch.from_numpy(features()))
    assert bag.grid.shapes == ((3, 2),)


def test_augmented_patches_are_counted_and_dropped_only_on_demand(tmp_path):
    coords = COORDS[[0, 1, 2, 2]]
    path = write(tmp_path / "slide.h5", feats=features(), coords=coords, augmented=[False, False, False, True])
    assert read_bag(path).bag.patches.shape == (1, 4, 3)
    assert slide_source(path).augmented == 1
    assert str(slide_source(path)).endswith(", 1 tiles are augmented copies")
    assert slide_source(path, path).augmented == 2
    dropped = read_bag(path, drop_augmented=True).bag
    assert torch.equal(dropped.patches[0], torch.from_numpy(features()[:3]))
    assert dropped.grid.cells[0].tolist() == [[0, 0], [1, 0], [0, 1]]


def test_augmented_patches_are_dropped_from_slides_without_coordinates(tmp_path):
    path = write(tmp_path / "slide.h5", feats=features(), augmented=[True, False, False, True])
    assert read_bag(path, drop_augmented=True).bag.patches[0, :, 0].tolist() == [3.0, 6.0]


def test_merged_slides_keep_all_patches_in_order_without_coordinates(tmp_path):
    first = write(tmp_path / "1.h5", features=features(2), coords=COORDS[:2])
    second = write(tmp_path / "2.h5", features=features(3) + 50)
    bag, _ = read_bag(first, second)
    assert bag.patches[0, :, 0].tolist() == [0.0, 3.0, 50.0, 53.0, 56.0]
    assert isinstance(bag.grid, TokenSet)


def test_merging_refuses_no_slides_and_other_widths_by_name(tmp_path):
    for read in (read_bag, slide_source):
        with pytest.raises(ValueError, match="paths must name at least one file, got none"):
            read()
    paths = [write(tmp_path / f"{width}.h5", features=features(2, width)) for width in (3, 5)]
    with pytest.raises(ValueError, match=r"5\.h5: must have 3 features per patch, got 5; .*3\.h5 is in the same bag"):
        read_bag(*paths)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_named_with_file_row_and_column(tmp_path, dtype, value):
    values = features().astype(dtype)
    values[0, 0], values[2, 1] = np.finfo(dtype).max, value
    path = write(tmp_path / "slide.h5", features=values)
    message = rf"slide\.h5: features must be finite, got {value} in row 2, column 1; extract the sl"
    for as_set in (False, True):
        with pytest.raises(ValueError, match=message):
            read_bag(path, as_set=as_set)


def test_a_coordinate_that_is_not_finite_is_named_with_file_row_and_column(tmp_path):
    coords = COORDS.astype(float)
    coords[3, 0] = np.inf
    path = write(tmp_path / "slide.h5", features=features(), coords=coords)
    with pytest.raises(ValueError, match=r"slide\.h5: coords must be finite, got inf in row 3, column 0"):
        read_bag(path)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            {"features": np.zeros((2, 4, 3))},
            r"features must have shape \[N, C\], \[1, N, C\] or \[C\], got \[2, 4, 3\]",
        ),
        ({"features": np.zeros((4, 0))}, r"at least one number per patch, got shape \[4, 0\]"),
        (
            {"features": features(dtype="int64")},
            "features must be floating-point numbers of 16, 32 or 64 bits, got int64; store them as float32",
        ),
        (
            {"x": features(), "coords": COORDS},
            r"a dataset features, feats or Res_feature, got coords \[4, 2\], x \[4, 3\]; name it by features = 'x'",
        ),
        ({"coords": COORDS}, "the file holds the tiles alone, as in the folder patches: name the folder of the feat"),
        ({"features/inner": features()}, r"a dataset features, feats or Res_feature, got features \['group'\]"),
        ({}, "a dataset features, feats or Res_feature, got an empty file"),
    ],
)
def test_unusable_features_are_refused_before_and_while_reading(tmp_path, datasets, message):
    path = write(tmp_path / "slide.h5", **datasets)
    for read in (read_bag, slide_source):
        with pytest.raises(ValueError, match=r"slide\.h5: .*" + message):
            read(path)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            {"coords": COORDS[:3]},
            r"features must have shape \[N, C\] = \[3, 4\] like the 3 coords, got \[4, 3\]; store them transposed",
        ),
        (
            {"coords": np.concatenate([COORDS, COORDS])},
            r"coords must have shape \[N, 2\] = \[4, 2\] like the features, got \[8, 2\]; extract the slide again",
        ),
        ({"coords": COORDS.T}, r"= \[4, 2\] like the features, got \[2, 4\]; store them transposed"),
        (
            {"coords": np.concatenate([COORDS, COORDS], axis=1)},
            r"= \[4, 2\] like the features, got \[4, 4\]; keep \(x, y\) of the upper left corners",
        ),
        (
            {"coords": COORDS.ravel()},
            r"coords must have shape \[N, 2\] = \[4, 2\] like the features, got \[8\]",
        ),
        ({"coords": [b"0_0"] * 4}, "coords must be numbers of at most 64 bits, got object"),
        (
            {"coords": COORDS * [1, 9999] + [[0, 0], [1, 1], [0, 3], [7, 5]]},
            "coords must lie on a grid: 4 tokens",
        ),
        ({"augmented": [True] * 4}, "at least one patch, got only augmented ones"),
        ({"augmented": [True] * 3}, r"augmented must have one flag per patch, \[4\], got \[3\]"),
    ],
)
def test_unusable_companions_are_refused(tmp_path, datasets, message):
    path = write(tmp_path / "slide.h5", features=features(), **datasets)
    with pytest.raises(ValueError, match=r"slide\.h5: .*" + message):
        read_bag(path, drop_augmented=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "448"}, "step must be a number, got str"),
        ({"step": -1}, "step must be positive and finite, got -1"),
        ({"step": np.nan}, "step must be positive and finite, got nan"),
        ({"features": 5}, "features must be a name, got int"),
        ({"coords": ["x", "y"]}, "coords must be a name, got list"),
        ({"seed": "1"}, "seed must be an integer, got str"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer, got float"),
    ],
)
def test_an_argument_that_is_wrong_is_no_damage_of_the_file(tmp_path, options, message):
    path = write(tmp_path / "slide.h5", features=features(), coords=COORDS)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        read_bag(path, **options)


def test_paths_are_paths(tmp_path):
    path = write(tmp_path / "slide.h5", features=features(), coords=COORDS)
    for read in (read_bag, slide_source, tile_places):
        for wrong, kind in (([path], "list"), (5, "int")):
            with pytest.raises(TypeError, match=f"^paths must be paths of files, got {kind}"):
                read(wrong)
    with pytest.raises(TypeError, match=r"^paths must be a tuple of paths, got [A-Za-z]*Path"):
        StoredBag(path)
    with pytest.raises(TypeError, match=r"^step must be a number, got str"):
        StoredBag((path,), step="448")
    with pytest.raises(TypeError, match=r"^step must be a number, got str"):
        check_places(path, step="448")


def test_an_error_of_the_reader_is_no_damage_of_the_file(tmp_path):
    path = write(tmp_path / "slide.h5", features=features())
    with pytest.raises(TypeError, match=r"^no damage"), open_hdf5(path):
        raise TypeError("no damage")


def test_demanded_coordinates_must_be_there(tmp_path):
    path = write(tmp_path / "slide.h5", features=features())
    with pytest.raises(ValueError, match=r"must have a dataset places, got features \[4, 3\]"):
        read_bag(path, coords="places")


def test_files_that_are_missing_truncated_or_no_hdf5_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.h5: there is no such file"):
        read_bag(tmp_path / "absent.h5")
    whole = write(tmp_path / "whole.h5", features=features(400)).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_text("no features here")
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(ValueError, match=name + ": must be a complete HDF5 file"):
            read_bag(tmp_path / name)


def test_damaged_files_are_read_or_refused_by_name(tmp_path):
    path = tmp_path / "slide.h5"
    write_bag(path, torch.ones(4, 3), torch.from_numpy(COORDS), step=448)
    whole, messages = path.read_bytes(), []
    for seed in range(600):
        random = np.random.default_rng(seed)
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_bag(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(f"{path}: ") for message in messages)


def test_an_empty_slide_and_further_attributes_are_written(tmp_path):
    path = tmp_path / "slide.h5"
    write_bag(path, torch.ones(0, 3), torch.zeros(0, 2), step=448, attributes={"level0_magnification": 40})
    source = slide_source(path)
    assert (source.tokens, source.width, source.tile, source.unit_um) == (0, 3, 448, 0.25)


def test_writing_refuses_what_could_not_be_read(tmp_path):
    path, good, coords = tmp_path / "slide.h5", torch.ones(2, 3), torch.zeros(2, 2)
    with pytest.raises(TypeError, match=r"must be float16, float32 or float64, got torch\.bfloat16"):
        write_bag(path, good.bfloat16())
    with pytest.raises(ValueError, match="attributes must come with coords, got overlap"):
        write_bag(path, good, attributes={"overlap": 0})
    with pytest.raises(ValueError, match="features must be finite, got nan in row 0, column 0"):
        write_bag(path, good * torch.nan)
    with pytest.raises(ValueError, match=r"coords must have shape \[N, 2\] = \[2, 2\], got \[1, 2\]"):
        write_bag(path, good, coords[:1])
    with pytest.raises(ValueError, match="coords must be finite, got inf in row 0, column 0"):
        write_bag(path, good, coords + torch.inf)
    for step, places in ((448, None), (0, coords), (float("inf"), coords)):
        with pytest.raises(ValueError, match="step must be positive and finite and come with coords"):
            write_bag(path, good, places, step=step)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_slide_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "slide.h5"
    write_bag(path, torch.ones(2, 3))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(h5py.File, "create_dataset", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bag(path, torch.zeros(5, 3))
    monkeypatch.undo()
    assert torch.equal(read_bag(path).bag.patches, torch.ones(1, 2, 3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "count", "width", "dtype"),
    [
        ("TCGA-3X", 180, 512, torch.float32),
        ("TCGA-AD", 777, 512, torch.float32),
        ("TCGA-DC", 2131, 768, torch.float16),
        ("TCGA-QG", 1896, 768, torch.float16),
    ],
)
def test_real_features_of_four_slides_are_read(shared, name, count, width, dtype):
    (path,) = (shared / "data" / "wsi_features").glob(f"{name}*.h5")
    bag, _ = read_bag(path, drop_augmented=True)
    assert bag.patches.shape == (1, count, width)
    assert bag.patches.dtype == dtype
    assert slide_source(path).width == width
    if name != "TCGA-3X":
        cells = bag.grid.cells[0]
        assert len(torch.unique(cells, dim=0)) == count
        with h5py.File(path) as file:
            coords = torch.from_numpy(file["coords"][:])
        step = 512 if name == "TCGA-AD" else 224
        assert torch.equal(cells, (coords - coords.amin(0)) // step)


def test_real_tile_maps_lie_on_the_grid_of_their_map(shared, tmp_path):
    tool = SimpleNamespace(**runpy.run_path(str(shared / "data" / "make_tile_bags.py")))
    with np.load(shared / "data" / "tcga_kirc" / "tilemaps.npz") as maps:
        name = min(maps.files[:20], key=lambda key: maps[key].size)
        tiles = maps[name].astype(float)
    tool.write_bag(tmp_path / "20x.h5", name, tiles, tool.TILE_LEVEL0, 20)
    tool.write_bag(tmp_path / "10x.h5", name, tool.halve(tiles), 2 * tool.TILE_LEVEL0, 10)
    for path, tissue in ((tmp_path / "20x.h5", tiles >= 0), (tmp_path / "10x.h5", tool.halve(tiles) >= 0)):
        bag, _ = read_bag(path)
        rows, columns = np.nonzero(tissue)
        cells = np.stack([columns - columns.min(), rows - rows.min()], axis=1)
        assert torch.equal(bag.grid.cells[0], torch.from_numpy(cells))
        assert bag.patches.shape == (1, len(rows), 24)
