"""Coordinates in AnnData are read under the names that are in use, and never passed over under another."""

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil.bags import TokenSet
from disentangled_mil.data.slides import SlideError, read_bag, slide_source
from tests.support import slides

anndata = pytest.importorskip("anndata")

COORDS = np.stack([np.arange(12) % 4, np.arange(12) // 4], axis=1) * slides.TILE
X, Y = COORDS.T


def written(path: Path, obs: dict[str, Any] | None = None, obsm: dict[str, Any] | None = None, x: Any = None) -> Path:
    """A table of 12 tiles."""
    table = pd.DataFrame(obs or {}, index=[f"tile{row}" for row in range(12)])
    values = np.ones((12, 4), "float32") if x is None else x
    content = anndata.AnnData(
        X=values, obs=table, obsm={key: _indexed(each, table) for key, each in (obsm or {}).items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of zarr
        (content.write_zarr if path.suffix == ".zarr" else content.write_h5ad)(path)
    return path


def _indexed(values: Any, table: pd.DataFrame) -> Any:
    return values.set_index(table.index) if isinstance(values, pd.DataFrame) else values


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize(
    ("obs", "obsm"),
    [
        ({"x_coord": X, "y_coord": Y}, {}),
        ({"X": X, "Y": Y}, {}),
        ({"pxl_row_in_fullres": Y, "pxl_col_in_fullres": X, "array_row": Y, "array_col": X}, {}),
        ({}, {"coords": COORDS}),
        ({}, {"X_spatial": COORDS}),
        ({"x": pd.array(X, dtype="Int64"), "y": pd.array(Y, dtype="Int64")}, {}),
        ({}, {"spatial": pd.DataFrame({"x": pd.array(X, dtype="Int64"), "y": Y})}),
        ({"x": Y, "y": X, "x_coord": Y}, {"spatial": COORDS, "coords": COORDS[::-1]}),
        ({"x": X, "y": Y, "X": Y, "Y": X}, {"X_spatial": COORDS[::-1]}),
    ],
)
def test_coordinates_are_read_under_every_name_in_use(tmp_path, suffix, obs, obsm):
    path = written(tmp_path / f"slide{suffix}", obs, obsm)
    bag, source = read_bag(path)
    assert source.placed
    assert torch.equal(bag.grid.cells[0], torch.from_numpy(COORDS // slides.TILE))


@pytest.mark.parametrize(
    ("obs", "obsm", "message"),
    [
        (
            {"x_centroid": X, "y_centroid": Y},
            {},
            r"got the columns x_centroid and y_centroid of obs; write them there, "
            r"table\.obsm\['spatial'\] = table\.obs\[\['x_centroid', 'y_centroid'\]\]\.to_numpy\(\)",
        ),
        ({"array_row": Y, "array_col": X}, {}, "got the columns array_col and array_row of obs"),
        ({"center.X": X, "center.Y": Y}, {}, r"got the columns center\.X and center\.Y of obs"),
        ({}, {"coords_um": COORDS}, r"got obsm\['coords_um'\]; name it by coords = 'coords_um'"),
        (
            {"X": X, "Y": Y},
            {"coords": COORDS},
            r"one place, got obsm\['coords'\] and the columns X and Y of",
        ),
    ],
)
def test_other_coordinates_are_refused_by_name_unless_they_do_not_matter(tmp_path, obs, obsm, message):
    path = written(tmp_path / "slide.h5ad", obs, obsm)
    for read in (read_bag, slide_source):
        with pytest.raises(SlideError, match=rf"slide\.h5ad: coordinates must be in .*{message}"):
            read(path)
    assert isinstance(read_bag(path, as_set=True).bag.grid, TokenSet)
    for key in obsm:
        assert read_bag(path, coords=key).source.placed


def test_other_columns_are_no_coordinates(tmp_path):
    path = written(
        tmp_path / "slide.h5ad", {"x_ray": X, "y": Y, "row": Y}, {"X_umap": COORDS, "X_pca": np.ones((12, 3))}
    )
    assert isinstance(read_bag(path).bag.grid, TokenSet)


@pytest.mark.parametrize("values", [X.astype(str), pd.Categorical(X.astype(str)), X > 0])
def test_columns_of_coordinates_that_are_no_numbers_are_named(tmp_path, values):
    path = written(tmp_path / "slide.h5ad", {"x": values, "y": Y})
    with pytest.raises(SlideError, match=r"slide\.h5ad: the column 'x' of obs must hold numbers, got .*to_numeric"):
        read_bag(path)


@pytest.mark.parametrize("name", ["obs", "obsm"])
def test_a_part_that_is_an_array_instead_of_a_group_is_named(tmp_path, name):
    path = written(tmp_path / "slide.h5ad", {"x": X, "y": Y})
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = np.zeros((12, 2))
    with pytest.raises(SlideError, match=rf"slide\.h5ad: {name} must be a group of named parts, got an array"):
        read_bag(path)


def test_a_nullable_integer_that_is_missing_is_named(tmp_path):
    path = written(tmp_path / "slide.h5ad", {"x": X, "y": pd.array([None, *Y[1:]], dtype="Int64")})
    with pytest.raises(SlideError, match=r"slide\.h5ad: coords must be finite, got nan in row 0, column 1"):
        read_bag(path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_sparse_and_absent_features_are_named(tmp_path, suffix):
    sparse = pytest.importorskip("scipy.sparse")
    path = written(tmp_path / f"sparse{suffix}", x=sparse.csr_matrix(np.eye(12, dtype="float32")))
    with pytest.raises(
        SlideError, match=r"X must be a dense array of features, got a sparse csr_matrix; .*toarray\(\)"
    ):
        read_bag(path)
    path = tmp_path / f"none{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = anndata.AnnData(obs=pd.DataFrame(index=["a", "b"]))
        (table.write_zarr if suffix == ".zarr" else table.write_h5ad)(path)
    with pytest.raises(SlideError, match=r"X must be an array of features, got none; store the features as X"):
        read_bag(path)


def test_no_name_of_features_is_passed_over(tmp_path):
    for suffix in (".h5ad", ".zarr"):
        path = written(tmp_path / f"slide{suffix}")
        assert read_bag(path, features="X").bag.patches.shape == (1, 12, 4)
        with pytest.raises(SlideError, match=r"features must be 'X' or absent for a table of AnnData, got 'X_uni'"):
            read_bag(path, features="X_uni")
