"""Every writer is recognized by the content of its files, and its slides are read back as they are."""

import warnings
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.bags import TokenSet
from disentangled_mil.data.slides import SlideError, read_bag, slide_source, tile_places
from tests.support import slides


class Layout(NamedTuple):
    """A writer, and what its files say."""

    write: slides.Writer
    writer: str
    encoder: str | None = None
    magnification: float | None = None
    mpp: float | None = None
    tile: float | None = None
    unit: str | None = None
    step: float = slides.TILE


PIXELS = "level-0 pixels"
FIRST = "STAMP-extract-001_01-10-2023_xiyuewang-ctranspath-7c998680"
LAYOUTS = {
    "clam": Layout(slides.clam, "CLAM", tile=448, unit=PIXELS),
    "clam_tensor": Layout(slides.clam_tensor, "CLAM", tile=448, unit=PIXELS),
    "trident": Layout(slides.trident, "TRIDENT", "uni_v1", 20, tile=448, unit=PIXELS),
    "stamp": Layout(slides.stamp, "STAMP", "uni2", mpp=0.5, tile=112, unit="micrometers", step=112),
    "first_stamp": Layout(slides.first_stamp, "STAMP", FIRST, mpp=256 / 224, tile=224, unit="tile pixels", step=224),
    "h5ad": Layout(slides.h5ad, "AnnData", mpp=0.5, tile=448, unit=PIXELS),
    "spatialdata": Layout(slides.spatialdata, "AnnData", "uni", mpp=0.5, tile=448, unit=PIXELS),
    "released": Layout(slides.released, "released method"),
}
NEEDS_ANNDATA = ("h5ad", "spatialdata")


def layout(name: str) -> Layout:
    if name in NEEDS_ANNDATA:
        pytest.importorskip("anndata")
    return LAYOUTS[name]


def drawn(count: int, width: int, dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features, and coordinates of tiles in a grid with holes."""
    generator = np.random.default_rng(seed)
    cells = generator.permutation(100)[:count]
    features = generator.normal(size=(count, width)).astype(dtype)
    return features, np.stack([cells % 10, cells // 10], axis=1) * slides.TILE


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=8)
@given(
    count=st.integers(1, 30),
    width=st.integers(1, 5),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 99),
)
def test_a_slide_of_any_writer_reads_back_in_its_own_type_at_its_own_place(
    name, tmp_path_factory, count, width, dtype, seed
):
    kind, (features, coords) = layout(name), drawn(count, width, dtype, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr and anndata while writing
        path = kind.write(tmp_path_factory.mktemp(name), "TCGA-1.DX1", features, coords)
    bag, source = read_bag(path)
    assert torch.equal(bag.patches[0], torch.from_numpy(features))
    if kind.tile is None:
        assert isinstance(bag.grid, TokenSet)
    else:
        assert torch.equal(bag.grid.cells[0], torch.from_numpy((coords - coords.min(axis=0)) // slides.TILE))
    said = (source.writer, source.encoder, source.magnification, source.mpp, source.tile, source.unit)
    assert said == (kind.writer, kind.encoder, kind.magnification, kind.mpp, kind.tile, kind.unit)
    assert (source.files, source.tokens, source.width, source.placed) == ((path,), count, width, kind.tile is not None)
    assert slide_source(path) == source


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_slide_without_tiles_is_counted_and_not_read(name, tmp_path):
    kind, (features, coords) = layout(name), drawn(0, 4, "float32", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = kind.write(tmp_path, "empty", features, coords)
    assert slide_source(path).tokens == 0
    with pytest.raises(
        ValueError, match=r"empty\.\w+: a slide must hold at least one patch, got none; leave the slide"
    ):
        read_bag(path)


def test_a_vector_of_no_width_is_a_slide_without_tiles(tmp_path):
    path = slides.write_hdf5(tmp_path / "slide.h5", features=np.zeros(0, "float32"), coords=np.zeros((0, 2)))
    source = slide_source(path)
    assert (source.tokens, source.width, source.placed) == (0, 0, False)
    full = slides.write_hdf5(tmp_path / "full.h5", features=np.ones((3, 5), "float32"))
    assert read_bag(path, full).bag.patches.shape == (1, 3, 5)


@pytest.mark.parametrize("shape", [(768,), (1, 768)])
@pytest.mark.parametrize("key", ["features", "feats"])
def test_the_vector_of_a_slide_encoder_is_a_bag_of_one(tmp_path, shape, key):
    values = np.arange(768, dtype="float32")
    path = slides.write_hdf5(tmp_path / "slide.h5", **{key: values.reshape(shape)})
    with h5py.File(path, "a") as file:
        file.attrs.update(encoder="titan", feat_type="slide")
        file["coords"] = np.zeros((50, 2), "int64")  # of the tiles behind it
    bag, source = read_bag(path)
    assert torch.equal(bag.patches, torch.from_numpy(values)[None, None])
    assert isinstance(bag.grid, TokenSet)
    assert (source.tokens, source.width, source.placed) == (1, 768, False)
    assert source.encoder == ("titan" if key == "feats" else None)
    if len(shape) == 2:
        with pytest.raises(SlideError, match=r"coords must have shape \[N, 2\] = \[1, 2\] like the features, got"):
            read_bag(path, coords="coords")


def test_the_tile_of_clam_without_its_patches_is_the_stride(tmp_path):
    features, coords = drawn(30, 4, "float32", 1)
    path = slides.clam(tmp_path, "slide", features, coords)
    (tmp_path / "patches" / "slide.h5").unlink()
    assert slide_source(path).tile is None
    bag, source = read_bag(path)
    assert source.tile == 448
    assert torch.equal(bag.grid.cells[0], torch.from_numpy((coords - coords.min(axis=0)) // 448))


def test_the_distance_of_far_tiles_is_no_side_of_a_tile(tmp_path):
    path = slides.write_hdf5(
        tmp_path / "slide.h5", features=np.ones((2, 4), "float32"), coords=np.array([[0, 0], [90_000, 50_000]])
    )
    bag, source = read_bag(path)
    assert (source.tile, bag.grid.shapes) == (None, ((3, 2),))
    assert tile_places(path)[0].tile is None
    message = r"slide\.h5: coords must lie on a grid: 2 tokens would span 202 x 113 cells of side 448; give .* far from"
    with pytest.raises(SlideError, match=message):
        read_bag(path, step=448)


def test_overlapping_tiles_of_clam_do_not_share_cells(tmp_path):
    features, coords = drawn(40, 4, "float32", 1)
    bag, source = read_bag(slides.clam(tmp_path, "slide", features, coords // 2))
    assert source.tile == 448
    assert len(torch.unique(bag.grid.cells[0], dim=0)) == 40


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["clam", "trident", "stamp"])
def test_slides_of_one_or_two_tiles_lie_on_the_lattice_of_their_tile(name, count, tmp_path):
    features, _ = drawn(count, 4, "float32", 0)
    path = LAYOUTS[name].write(tmp_path, "slide", features, np.array([[0, 0], [5 * 448, 448]])[:count])
    assert read_bag(path).bag.grid.shapes == (((1, 1),) if count == 1 else ((6, 2),))


def test_the_unit_of_stamp_is_read(tmp_path):
    features, coords = drawn(40, 4, "float32", 1)
    path = slides.stamp(tmp_path, "slide", features, coords)

    def note(**notes: object) -> None:
        with h5py.File(path, "a") as file:
            for name in ("unit", "tile_size_um", "tile_size_px", "tile_size"):
                file.attrs.pop(name, None)
            file.attrs.update(notes)

    note(unit="µm", tile_size_um=112.0)
    assert read_bag(path).source[8:11] == (112, "micrometers", 1)
    note(unit="um", tile_size_px=224)
    assert read_bag(path).source[7:11] == (None, 112, "micrometers", 1)
    note(tile_size=112.0)
    assert read_bag(path).source[7:11] == (None, 112, "micrometers", 1)
    # Pixels of no known level have no known size, and their stride is the side of a tile.
    note(unit="px", tile_size_px=224)
    bag, source = read_bag(path)
    assert source[7:11] == (None, 112, None, None)
    assert bag.grid.shapes == read_bag(path, step=112).bag.grid.shapes
    message = r"slide\.h5: the attribute unit must be 'um' .*, got"
    note(unit="px", tile_size_um=112.0, tile_size_px=224)
    with pytest.raises(SlideError, match=rf"{message} 'px' with a tile of 112 micrometers; correct the attributes"):
        slide_source(path)
    note(unit="inch")
    with pytest.raises(SlideError, match=rf"{message} 'inch'; correct"):
        slide_source(path)


def test_a_tensor_without_a_file_of_coordinates_is_a_set(tmp_path):
    torch.save(torch.ones(1, 3, 4), tmp_path / "slide.pt")
    bag, source = read_bag(tmp_path / "slide.pt")
    assert (bag.patches.shape, source.writer, source.placed) == ((1, 3, 4), "tensor", False)
    torch.save(torch.ones(3, 4, dtype=torch.bfloat16), tmp_path / "slide.pt")
    assert read_bag(tmp_path / "slide.pt").bag.patches.dtype == torch.float32
    torch.save(torch.ones(3, 4), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_bag(tmp_path / "old.pt").bag.patches, torch.ones(1, 3, 4))


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('code of the file ran')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Code(), r"must hold a tensor that torch\.load\(weights_only=True\) reads, got UnpicklingError"),
        (
            np.ones((2, 3), "float32"),
            r"must hold a tensor that torch\.load\(weights_only=True\) reads, got UnpicklingError, so [ -~]*; save a "
            r"tensor, torch\.save\(torch\.from_numpy\(features\), path\), or features with coordinates by write_bag$",
        ),
        ({"features": torch.ones(2, 3)}, "must hold one floating-point tensor alone, got dict"),
        (
            torch.ones(2, 3, dtype=torch.int64),
            r"must hold one floating-point tensor alone, got a tensor of torch\.int64",
        ),
        (
            torch.ones(2, 3, dtype=torch.float8_e4m3fn),
            r"must hold one floating-point tensor alone, got a tensor of torch\.float8_e4m3fn",
        ),
        (
            torch.ones(2, 3, device="meta"),
            r"must hold one floating-point tensor alone, got a tensor of torch\.float32 without values",
        ),
        (
            torch.ones(2, 3).to_sparse(),
            r"must hold one floating-point tensor alone, got a tensor of torch\.float32 of the layout torch\.spa",
        ),
        (torch.ones(2, 2, 3), r"features must have shape \[N, C\], \[1, N, C\] or \[C\], got \[2, 2, 3\]"),
        (torch.ones(3, 0), r"features must have shape .*, got \[3, 0\]"),
    ],
)
def test_a_file_of_pytorch_with_anything_else_is_refused_and_runs_no_code(tmp_path, content, message):
    torch.save(content, tmp_path / "slide.pt")
    with pytest.raises(ValueError, match=rf"slide\.pt: {message}"):
        read_bag(tmp_path / "slide.pt")


def test_a_tensor_has_no_names_and_as_many_rows_as_coordinates(tmp_path):
    features, coords = drawn(5, 4, "float32", 0)
    path = slides.clam_tensor(tmp_path, "slide", features, coords)
    for argument in ("features", "coords"):
        with pytest.raises(ValueError, match=rf"slide\.pt: {argument} must be None for a tensor"):
            read_bag(path, **{argument: "uni"})
    torch.save(torch.ones(4, 4), path)
    message = (
        r"slide\.h5: coords must have .* = \[4, 2\] like the features in .*slide\.pt, got \[5, 2\]; extract the slide"
    )
    with pytest.raises(ValueError, match=message):
        read_bag(path)
    for vector in (torch.ones(4), torch.ones(1, 4)):  # of a slide encoder, beside the coordinates of its tiles
        torch.save(vector, path)
        assert isinstance(read_bag(path).bag.grid, TokenSet)


def test_a_cut_tensor_is_refused(tmp_path):
    torch.save(torch.ones(300, 4), tmp_path / "slide.pt")
    whole = (tmp_path / "slide.pt").read_bytes()
    (tmp_path / "slide.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"slide\.pt: must hold a tensor that torch\.load"):
        read_bag(tmp_path / "slide.pt")


def test_slides_of_one_patient_are_a_set_in_their_order(tmp_path):
    parts = [drawn(count, 4, "float16", count)[0] for count in (2, 3)]
    paths = [
        slides.trident(tmp_path, f"{n}", part, np.arange(2 * len(part)).reshape(-1, 2)) for n, part in enumerate(parts)
    ]
    bag, source = read_bag(*paths)
    assert torch.equal(bag.patches[0], torch.from_numpy(np.concatenate(parts)))
    assert (source.files, source.tokens, source.placed, source.encoder) == (tuple(paths), 5, False, "uni_v1")
    with h5py.File(paths[1], "a") as file:
        file["features"].attrs["encoder"] = "conch"
    with pytest.raises(
        ValueError, match=r"1\.h5: must have features of the encoder 'uni_v1', got 'conch'; .*0\.h5 is in"
    ):
        read_bag(*paths)


def test_a_table_whose_coordinates_are_shapes_is_not_read_as_a_set_silently(tmp_path: Path):
    layout("spatialdata")
    features, coords = drawn(5, 4, "float32", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = slides.spatialdata(tmp_path, "slide", features, coords)
        import zarr

        table = zarr.open_group(str(path))["tables/uni_tiles/obs"]
        del table["x"]
    (path / "shapes" / "tiles").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"slide\.zarr: coordinates must be in obsm\['spatial'\] or .*features_anndata"
    ):
        read_bag(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.attrs["column-order"] = ["tile_id", "y"]
    assert read_bag(path, as_set=True).bag.patches.shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"slide\.zarr: must hold one table with features, .*, got uni_tiles"):
        read_bag(path, features="conch_tiles")
