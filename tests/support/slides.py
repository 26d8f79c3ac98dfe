"""Slides in the layouts of the programs that extract features, written as their documentation says."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.generic]

TILE = 448  # of all layouts in level-0 pixels, at 20x of a slide of 40x
MICROMETERS = 112.0


def write_hdf5(path: Path, **datasets: object) -> Path:
    """A file with these datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def clam(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """Features in ``h5_files``, whose dataset grows by a tile; the tile size in ``patches`` beside it."""
    patches = write_hdf5(folder / "patches" / f"{name}.h5", coords=coords)
    with h5py.File(patches, "a") as file:
        extent = coords.max(axis=0) + 2 * TILE if len(coords) else np.array([TILE, TILE])
        file["coords"].attrs.update(
            patch_size=TILE // 4, patch_level=1, downsample=(4.0, 4.0), downsampled_level_dim=extent // 4,
            level_dim=extent // 4, name=name, save_path=str(folder),
        )  # fmt: skip
    path = folder / "h5_files" / f"{name}.h5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in (("features", features), ("coords", coords)):
            shape = (None, *values.shape[1:])
            file.create_dataset(key, data=values, maxshape=shape, chunks=(1, *values.shape[1:]))
    return path


def clam_tensor(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """The tensor that CLAM writes beside its HDF5 file."""
    clam(folder, name, features, coords)
    path = folder / "pt_files" / f"{name}.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(torch.from_numpy(features), path)
    return path


def trident(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """Features and coordinates, whose attributes say all."""
    path = write_hdf5(folder / f"{name}.h5", features=features, coords=coords)
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(
            patch_size=TILE // 2, patch_size_level0=TILE, level0_magnification=40, target_magnification=20, overlap=0,
            name=name, savetodir=str(folder), level0_width=100_000, level0_height=80_000,
        )  # fmt: skip
        file["features"].attrs.update(name=name, savetodir=str(folder), encoder="uni_v1")
    return path


def stamp(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """Features in half precision; coordinates in micrometers."""
    places = (coords * (MICROMETERS / TILE)).astype(np.float32)
    path = write_hdf5(folder / f"{name}.h5", feats=features, coords=places)
    with h5py.File(path, "a") as file:
        file.attrs.update(
            stamp_version="2.3.0", extractor="uni2", unit="um", tile_size_um=MICROMETERS, tile_size_px=224,
            code_hash="0", feat_type="tile",
        )  # fmt: skip
    return path


def first_stamp(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """Coordinates in pixels of tiles of 224, flags of augmented tiles, and no more than a name."""
    path = write_hdf5(
        folder / f"{name}.h5", feats=features, coords=coords // 2, augmented=np.zeros(len(features), dtype=bool)
    )
    with h5py.File(path, "a") as file:
        file.attrs["extractor"] = "STAMP-extract-001_01-10-2023_xiyuewang-ctranspath-7c998680"
    return path


def anndata_table(features: Array, coords: Array | None) -> "object":
    """The table that LazySlide's ``fetch.features_anndata`` returns; without coordinates, the table that it stores."""
    import anndata
    import pandas as pd

    obs = pd.DataFrame({"tile_id": np.arange(len(features))}, index=[f"{row}" for row in range(len(features))])
    table = anndata.AnnData(X=features, obs=obs)
    if coords is not None:
        table.obsm["spatial"] = coords
        table.uns["tile_spec"] = TILE_SPEC
        table.uns["slide_properties"] = {"shape": [80_000, 100_000], "mpp": 0.25, "magnification": 40}
    return table


TILE_SPEC = {
    "height": 224,
    "width": 224,
    "stride_height": 224,
    "stride_width": 224,
    "mpp": 0.5,
    "ops_level": 0,
    "ops_downsample": 2.0,
    "base_level": 0,
    "base_downsample": 2.0,
    "tissue_name": "tissues",
}


def h5ad(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """LazySlide's table with coordinates as an ``.h5ad``."""
    path = folder / f"{name}.h5ad"
    anndata_table(features, coords).write_h5ad(path)
    return path


def spatialdata(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """A SpatialData folder with one table of features, whose coordinates are columns."""
    import anndata
    import zarr

    path = folder / f"{name}.zarr"
    options = {} if zarr.__version__.startswith("2.") else {"zarr_format": 2}
    root = zarr.open_group(str(path), mode="w", **options)
    table = anndata_table(features, None)
    table.obs["x"], table.obs["y"] = coords[:, 0], coords[:, 1]
    specs = anndata.AnnData(uns={"tiles": TILE_SPEC})
    for key, part in (("uni_tiles", table), ("tile_spec", specs)):
        anndata.io.write_elem(root, f"tables/{key}", part)
    return path


def released(folder: Path, name: str, features: Array, coords: Array) -> Path:
    """The layout of the released method: no coordinates."""
    return write_hdf5(folder / f"{name}.h5", Res_feature=features[None])


Writer = Callable[[Path, str, Array, Array], Path]
