"""Files that cannot be right are refused: the message names file, place and remedy."""

import os
import unicodedata
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from disentangled_mil.data.slides import SlideError, read_bag, slide_files, slide_name, slide_source, write_bag
from tests.support import slides

FEATURES = np.arange(40, dtype="float32").reshape(10, 4)
COORDS = np.stack([np.arange(10) % 5, np.arange(10) // 5], axis=1) * slides.TILE


def refused(path: Path, message: str, *, by_metadata: bool = True) -> None:
    """A file is refused when it is read, and already from its metadata if that shows the defect."""
    for read in (read_bag, slide_source) if by_metadata else (read_bag,):
        with pytest.raises(SlideError, match=rf"{path.name}: {message}") as error:
            read(path)
        assert error.value.file == path


@pytest.mark.parametrize("write", [slides.clam, slides.trident, slides.stamp])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path, write, share):
    path = write(tmp_path, "slide", np.ones((500, 16), "float32"), np.arange(1000).reshape(-1, 2) * slides.TILE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "must be a complete HDF5 file: .*; write the file again")


@pytest.mark.parametrize("part", ["uns/tile_spec/mpp", "obsm/spatial"])
def test_a_part_that_the_library_of_anndata_does_not_know_is_named(tmp_path, part):
    path = slides.h5ad(tmp_path, "table", FEATURES, COORDS)
    with h5py.File(path, "r+") as file:
        file[part].attrs["encoding-type"] = "nueeric-scalar"
    element = "/".join(part.split("/")[:2])
    refused(path, rf"/{element} must be an element of AnnData: ", by_metadata=part.startswith("uns"))


def test_rows_that_were_declared_and_never_written_are_not_read_as_zeros(tmp_path):
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        data = file.create_dataset("features", (10, 4), "float32", chunks=(2, 4))
        data[:4] = 1.0
    message = r"features must hold the \[10, 4\] numbers that it declares, got 2 of 5 chunks; extract the slide again"
    refused(tmp_path / "slide.h5", message)
    with h5py.File(tmp_path / "late.h5", "w") as file:
        file.create_dataset("features", (10, 4), "float32")
    refused(tmp_path / "late.h5", "features must hold the .* got 0 of 160 bytes")


def test_an_absurd_size_is_refused_without_memory_for_it(tmp_path):
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file.create_dataset("features", (10**12, 1024), "float32", chunks=(1024, 1024))
    refused(tmp_path / "slide.h5", r"features must hold the \[1000000000000, 1024\] numbers that it declares")
    torch.save(torch.zeros(1).expand(10**12, 1024), tmp_path / "slide.pt")
    refused(tmp_path / "slide.pt", r"must hold the \[1000000000000, 1024\] numbers that it declares, got 4 bytes")


def test_more_numbers_than_any_compression_stores_are_refused(tmp_path):
    block, count = 1 << 20, 1000
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        data = file.create_dataset("features", (block * count, 8), "float32", chunks=(block, 8), compression="gzip")
        for chunk in range(count):
            data.id.write_direct_chunk((chunk * block, 0), b"x" * 64)
    refused(tmp_path / "slide.h5", r"features must hold the .* it declares, got 64000 bytes for 33554432000; extract")


def test_compressed_features_that_are_all_alike_are_read(tmp_path):
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((4096, 256), "float32"), compression="gzip", compression_opts=9)
    assert read_bag(tmp_path / "slide.h5").bag.patches.shape == (1, 4096, 256)


def test_features_in_other_files_are_refused_by_name(tmp_path):
    np.ones((10, 4), "float32").tofile(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("features", (10, 4), "float32", external=[(str(tmp_path / "raw.bin"), 0, 160)])
    refused(tmp_path / "external.h5", r"features must be in the file, got external storage in .*raw\.bin; copy it")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink("moved_away.h5", "/features")
    refused(tmp_path / "link.h5", r"features must be in the file, got a link to moved_away\.h5, which is not there")


def test_a_virtual_dataset_is_read_as_long_as_its_sources_are_there(tmp_path):
    layout = h5py.VirtualLayout((10, 4), "float32")
    for half in range(2):
        part = FEATURES[5 * half : 5 * half + 5]
        slides.write_hdf5(tmp_path / f"part{half}.h5", features=part)
        layout[5 * half : 5 * half + 5] = h5py.VirtualSource(f"part{half}.h5", "features", shape=(5, 4))
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    assert torch.equal(read_bag(tmp_path / "slide.h5").bag.patches[0], torch.from_numpy(FEATURES))
    slides.write_hdf5(tmp_path / "part1.h5", features=FEATURES[:3])
    refused(tmp_path / "slide.h5", r"features must be in the file, got a view of features in part1\.h5, which does not")
    (tmp_path / "part1.h5").unlink()
    refused(tmp_path / "slide.h5", r"features must be in the file, got a view of part1\.h5, which is not there; copy")


def test_a_view_that_is_not_filled_or_looks_at_itself_or_at_any_file_is_refused(tmp_path):
    slides.write_hdf5(tmp_path / "part.h5", features=FEATURES[:5])
    layout = h5py.VirtualLayout((10, 4), "float32")
    layout[:5] = h5py.VirtualSource("part.h5", "features", shape=(5, 4))
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    refused(tmp_path / "half.h5", r"features must hold the \[10, 4\] numbers that it declares, got a view of 20; copy")
    layout[:5] = h5py.VirtualSource("part.h5", "features", shape=(5, 4))
    with h5py.File(tmp_path / "twice.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    refused(tmp_path / "twice.h5", r"features must hold the \[10, 4\] numbers that it declares, got a view of 20; copy")
    layout[5:] = h5py.VirtualSource("itself.h5", "features", shape=(5, 4))
    with h5py.File(tmp_path / "itself.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    refused(tmp_path / "itself.h5", r"features must be in the file, got a view of features in itself\.h5, which does")
    FEATURES.tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("features", (5, 4), "float32", external=[(str(tmp_path / "secret"), 0, 80)])
    with pytest.raises(SlideError, match=r"part\.h5: features must be in the file, got external storage in .*secret"):
        read_bag(tmp_path / "half.h5")


def test_coordinates_that_are_not_in_the_file_are_refused_too(tmp_path):
    COORDS.tofile(tmp_path / "raw.bin")
    path = slides.write_hdf5(tmp_path / "slide.h5", features=FEATURES)
    with h5py.File(path, "a") as file:
        file.create_dataset("coords", (10, 2), "int64", external=[(str(tmp_path / "raw.bin"), 0, 160)])
    refused(path, r"coords must be in the file, got external storage in .*raw\.bin; copy it")
    pytest.importorskip("anndata")
    path = slides.h5ad(tmp_path, "table", FEATURES, COORDS)
    with h5py.File(path, "a") as file:
        del file["obsm/spatial"]
        file["obsm"].create_dataset("spatial", (10, 2), "int64", external=[(str(tmp_path / "raw.bin"), 0, 160)])
    refused(path, r"obsm/spatial must be in the file, got external storage in .*raw\.bin; copy it")


@pytest.mark.parametrize("kind", ["soft", "external"])
@pytest.mark.parametrize("place", ["obsm", "obsm/spatial", "uns/tile_spec", "uns/tile_spec/mpp"])
def test_parts_of_a_table_that_are_links_are_refused_by_name(tmp_path, kind, place):
    pytest.importorskip("anndata")
    path = slides.h5ad(tmp_path, "table", FEATURES, COORDS)
    (tmp_path / "secret").write_bytes(b"root:x:0:0:root:/root:/bin/bash\n" * 9)
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "other.h5", "w") as other:
        (file if kind == "soft" else other).create_dataset(
            "hidden", (10, 2), "int64", external=[(str(tmp_path / "secret"), 0, 160)]
        )
        del file[place]
        file[place] = h5py.SoftLink("/hidden") if kind == "soft" else h5py.ExternalLink("other.h5", "/hidden")
    to = "/hidden" if kind == "soft" else r"other\.h5"
    refused(path, rf"{place}[a-z_/]* must be in the file at its place, got a link to {to}; copy it there")


def test_parts_of_a_table_that_no_reader_needs_are_not_read(tmp_path):
    anndata, zarr = pytest.importorskip("anndata"), pytest.importorskip("zarr")
    path = slides.h5ad(tmp_path, "table", FEATURES, COORDS)
    with h5py.File(path, "a") as file:
        for name in ("uns/large", "obsm/large"):
            data = file.create_dataset(name, (10, 10**9), "float32", chunks=(10, 1 << 16))
            data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["uns"]["link"] = h5py.ExternalLink("gone.h5", "/x")
    assert read_bag(path).bag.grid.shapes == ((5, 2),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = slides.spatialdata(tmp_path, "table", FEATURES, COORDS)
        root = zarr.open_group(str(folder))
        for name in ("uns/large", "obsm/large"):
            data = (
                root["tables/uni_tiles"]
                .require_group(name.split("/")[0])
                .create_array("large", shape=(10, 10**9), chunks=(10, 1 << 16), dtype="float32")
            )
            data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    assert anndata is not None
    assert read_bag(folder).bag.grid.shapes == ((5, 2),)


@pytest.mark.parametrize("large", [False, True])
def test_coordinates_that_zarr_never_wrote_are_not_read_as_zeros(tmp_path, large):
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("anndata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = slides.spatialdata(tmp_path, "table", FEATURES, COORDS)
        table = zarr.open_group(str(path))["tables/uni_tiles"]
        shape = (10**9, 2) if large else (10, 2)
        data = table.require_group("obsm").create_array("spatial", shape=shape, chunks=(5, 2), dtype="int64")
        data[:5] = COORDS[:5]
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    if large:
        refused(path, r"obsm/spatial must hold the \[1000000000, 2\] numbers that it declares, got \d+ bytes for")
    else:
        message = (
            r"coords must be stored for every patch, got chunks that were never written, and 6 patches at \(0, 0\)"
        )
        refused(path, message, by_metadata=False)


def test_a_slide_whose_chunk_of_zeros_zarr_left_out_is_read(tmp_path):
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("anndata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coords = np.array([[0, 0], [0, slides.TILE]])
        path = slides.spatialdata(tmp_path, "table", FEATURES[:2], coords)
        obs = zarr.open_group(str(path))["tables/uni_tiles/obs"]
        del obs["x"]
        obs.create_array("x", shape=(2,), chunks=(2,), dtype="int64").attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
    assert read_bag(path, step=slides.TILE).bag.grid.shapes == ((1, 2),)


def test_numbers_of_a_size_that_pytorch_lacks_are_refused(tmp_path):
    path = slides.write_hdf5(tmp_path / "slide.h5", features=FEATURES.astype(np.longdouble))
    refused(path, "features must be floating-point numbers of 16, 32 or 64 bits, got float128")
    path = slides.write_hdf5(tmp_path / "places.h5", features=FEATURES, coords=COORDS.astype(np.longdouble))
    refused(path, "coords must be numbers of at most 64 bits, got float128", by_metadata=False)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (-448, "-448"),
        (2**31, "2147483648"),
        (np.uint32(2**32 - 1), "4294967295"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (1e30, r"1e\+30"),
    ],
)
def test_negative_and_huge_coordinates_are_named(tmp_path, value, got):
    coords = COORDS.astype(np.asarray(value).dtype)
    coords[3, 1] = value
    path = slides.write_hdf5(tmp_path / "slide.h5", features=FEATURES, coords=coords)
    message = rf"coords must lie between 0 and 10,000,000, got {got} in row 3, column 1; write the coordinates of upper"
    refused(path, message, by_metadata=False)


@pytest.mark.parametrize("write", [slides.clam, slides.trident, slides.h5ad])
def test_swapped_columns_of_coordinates_are_recognized_by_the_size_of_the_slide(tmp_path, write):
    if write is slides.h5ad:
        pytest.importorskip("anndata")
    wide = COORDS + np.array([90_000 // slides.TILE * slides.TILE, 0])
    path = write(tmp_path, "slide", FEATURES, wide)
    read_bag(path)
    with h5py.File(path, "a") as file:
        places = file["obsm/spatial"] if write is slides.h5ad else file["coords"]
        places[:] = wide[:, ::-1]
    message = r"coords must be \(x, y\) inside of the slide of \d+ x \d+, got up to \(\d+, \d+\); x and y are swapped"
    refused(path, message, by_metadata=False)


def test_coordinates_outside_of_the_slide_are_refused(tmp_path):
    path = slides.trident(tmp_path, "slide", FEATURES, COORDS + 200_000)
    refused(path, r"coords must be \(x, y\) inside of the slide of 100000 x 80000, got .*\)$", by_metadata=False)


@pytest.mark.parametrize("row", [0, 4_999, 99_999])
def test_a_tile_that_is_not_finite_is_named_in_slides_of_several_blocks(tmp_path, row):
    values = np.ones((100_000, 64), "float16")
    values[row, 7] = np.nan
    path = slides.write_hdf5(tmp_path / "slide.h5", features=values)
    refused(path, f"features must be finite, got nan in row {row}, column 7", by_metadata=False)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    for name, content in (("empty.h5", b""), ("text.pt", b"features"), ("image.h5", b"\x89PNG\r\n")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "must be a complete HDF5 file: ")


def test_a_folder_that_is_no_zarr_and_a_table_without_its_chunks_are_refused(tmp_path):
    pytest.importorskip("anndata")
    zarr = pytest.importorskip("zarr")
    (tmp_path / "folder.zarr").mkdir()
    refused(tmp_path / "folder.zarr", "must be a complete zarr folder")
    root = zarr.open_group(str(tmp_path / "table.zarr"), mode="w", zarr_format=2)
    root.attrs["encoding-type"] = "anndata"
    root.create_array("X", shape=(10, 4), chunks=(5, 4), dtype="float32")[:5] = 1.0
    refused(tmp_path / "table.zarr", r"X must hold the \[10, 4\] numbers that it declares, got 1 of 2 chunks; write")


def test_names_of_slides_may_be_written_in_either_form_of_unicode(tmp_path):
    name = "Bönn 切片"
    write_bag(tmp_path / f"{unicodedata.normalize('NFD', name)}.h5", torch.ones(2, 4))
    files = slide_files(tmp_path)
    assert list(files) == [unicodedata.normalize("NFC", name)]
    assert read_bag(*files.values()).bag.patches.shape == (1, 2, 4)


def test_endings_of_images_and_features_are_no_part_of_the_name_of_a_slide(tmp_path):
    write_bag(tmp_path / "X.1.svs.h5", torch.ones(2, 4))
    assert list(slide_files(tmp_path)) == ["X.1"]
    assert {slide_name(name) for name in ("X.1", " X.1.svs", "X.1.SVS.h5", "X.1.ome.tiff")} == {"X.1", "X.1.ome"}
    (tmp_path / "X.1.h5").touch()
    with pytest.raises(SlideError, match=r"must hold one file per slide, got X\.1\.h5 and X\.1\.svs\.h5"):
        slide_files(tmp_path)


def test_one_slide_in_two_files_is_refused(tmp_path):
    for name in ("a.h5", "a.pt", ".hidden.h5", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(SlideError, match=r"must hold one file per slide, got a\.h5 and a\.pt"):
        slide_files(tmp_path)
    (tmp_path / "a.pt").unlink()
    assert list(slide_files(tmp_path)) == ["a"]


def test_a_folder_above_that_of_the_slides_names_it(tmp_path):
    for name in ("s1", "s2"):
        slides.clam_tensor(tmp_path / "clam", name, FEATURES, COORDS)
        slides.trident(tmp_path / "trident" / "20x" / "features_uni_v1", name, FEATURES, COORDS)
        slides.write_hdf5(tmp_path / "trident" / "20x" / "patches" / f"{name}_patches.h5", coords=COORDS)
    for above, place in (("clam", "h5_files"), ("trident", "20x/features_uni_v1"), ("trident/20x", "features_uni_v1")):
        holding = tmp_path / above / place
        with pytest.raises(FileNotFoundError) as error:
            slide_files(tmp_path / above)
        assert str(error.value).startswith(f"{tmp_path / above}: must hold slides (.h5, ")
        assert str(error.value).endswith(f", got none; {holding} holds 2 of them: name that folder")


def test_other_endings_are_named_and_capital_ones_are_read(tmp_path):
    np.save(tmp_path / "a.npy", FEATURES)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"got none; it holds 1 files of another ending, such as a\.npy: write"):
        slide_files(tmp_path)
    write_bag(tmp_path / "B.H5", torch.ones(2, 4))
    assert list(slide_files(tmp_path)) == ["B"]
    (tmp_path / "empty").mkdir()
    assert slide_files(tmp_path / "empty") == {}


def test_folders_and_files_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    path = slides.trident(tmp_path, "slide", FEATURES, COORDS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match=r"must be readable, got no permission to list its files"):
        slide_files(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"slide\.h5: must be readable, got no permission to read it"):
        slide_source(path)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        slide_files(tmp_path / "absent")
