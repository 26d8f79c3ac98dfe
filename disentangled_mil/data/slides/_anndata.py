"""Tables of AnnData, as LazySlide and scverse write them: ``.h5ad``, or a table in the ``.zarr`` of a SpatialData.

Features are ``X``. Where the coordinates are, :mod:`._anndata_places` tells. LazySlide describes its tiles in
``uns["tile_spec"]``, or in a table of that name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ._anndata_places import find_places, read_anndata_places
from ._hdf5 import check_complete, check_coords, check_features, check_held, raised_in
from ._stored import Array, StoredSlide, number, text
from .source import SlideError, SlideSource

_SUFFIX = "_tiles"  # LazySlide names a table after its encoder: uni_tiles.


def is_anndata(group: Any) -> bool:
    """Whether an HDF5 or zarr group holds AnnData."""
    return group.attrs.get("encoding-type") == "anndata" or ("X" in group and "obs" in group)


def open_anndata_group(
    path: Path, group: Any, coords: str | None, encoder: str | None = None, specs: Any = None, *, as_set: bool
) -> StoredSlide:
    """The slide in a group that holds AnnData.

    Args:
        path: file, for errors.
        group: group of HDF5 or zarr.
        coords: key of ``obsm``; by default the coordinates under a known name, if present.
        encoder: name of the encoder, if it is known.
        specs: table with descriptions of tiles, if it is apart.
        as_set: flag that allows coordinates under an unknown name.

    Returns:
        The slide.

    Raises:
        SlideError: a part is missing or has a wrong shape or type.
    """
    if isinstance(group, h5py.Group):
        _check_parts(path, group)
    values = _features(path, group)
    count, width = check_features(path, values)
    notes = _read(path, group["uns"]) if "uns" in group else {}
    spec = notes.get("tile_spec") or (
        next(iter(_read(path, specs["uns"]).values()), None) if specs is not None else None
    )
    spec = spec if isinstance(spec, Mapping) else {}
    shape = [number(side) for side in np.ravel(notes.get("slide_properties", {}).get("shape", ()))]
    scale = number(spec.get("base_downsample"))
    tile, step = (
        number(spec.get(f"raw_{name}")) or (side * scale if scale and (side := number(spec.get(name))) else None)
        for name in ("width", "stride_width")
    )
    place = find_places(path, group, coords, as_set=as_set or count < 2)
    placed = place is not None

    def places() -> Array:
        found = read_anndata_places(path, place, lambda part: _read(path, group[part])) if place else np.empty(0)
        check_coords(path, found, count, width)
        return found

    return StoredSlide(
        SlideSource(
            (path,),
            "AnnData",
            count,
            width,
            placed,
            encoder or text(notes.get("encoder", "")),
            mpp=number(spec.get("mpp")),
            tile=tile if placed else None,
            unit="level-0 pixels" if placed and spec else None,
        ),
        values,
        values.chunks[0] if values.chunks else 1,
        places if placed else None,
        step=lambda: step,
        extent=(shape[1], shape[0]) if len(shape) == 2 and shape[0] and shape[1] else None,
    )


@contextmanager
def open_zarr_slide(path: Path, features: str | None, coords: str | None, *, as_set: bool) -> Iterator[StoredSlide]:
    """The slide in a zarr folder: AnnData, or a table of a SpatialData; ``features`` names one of several tables."""
    require_anndata(path)
    import zarr

    try:
        root: Any = zarr.open_group(str(path), mode="r")
        if is_anndata(root):
            check_unnamed(path, features)
            yield open_anndata_group(path, root, coords, as_set=as_set)
            return
        tables = root.get("tables", {})
        names = [name for name in tables if is_anndata(tables[name]) and "X" in tables[name]]
        if features not in names if features is not None else len(names) != 1:
            raise SlideError(
                f"{path}: must hold one table with features, or features = 'NAME' must name one of several, got "
                f"{', '.join(sorted(names)) or 'none'}"
            )
        name = features or names[0]
        encoder = name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else None
        yield open_anndata_group(path, tables[name], coords, encoder, tables.get("tile_spec"), as_set=as_set)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SlideError) or not raised_in(error, "zarr", "numcodecs"):
            raise
        raise SlideError(f"{path}: must be a complete zarr folder: {error}; write it again") from error


def _features(path: Path, group: Any) -> Any:
    """The array X; the file holds all of it."""
    values: Any = group.get("X")
    if not hasattr(values, "dtype"):
        raise SlideError(f"{path}: {_no_array(values)}")
    if isinstance(values, h5py.Dataset):
        check_complete(path, "X", values)
        return values
    if values.nchunks_initialized < values.nchunks:
        raise SlideError(
            f"{path}: X must hold the {list(values.shape)} numbers that it declares, got {values.nchunks_initialized} "
            f"of {values.nchunks} chunks; write the table again"
        )
    stored = values.nbytes_stored  # a number before zarr 3
    check_held(path, "X", values.shape, values.nbytes, stored() if callable(stored) else stored)
    return values


def _no_array(values: Any) -> str:
    """The error about features that are no dense array."""
    if values is None:
        return "X must be an array of features, got none; store the features as X"
    kind = text(values.attrs.get("encoding-type"))
    if kind in ("csr_matrix", "csc_matrix"):
        return f"X must be a dense array of features, got a sparse {kind}; write it dense, table.X = table.X.toarray()"
    return f"X must be a dense array of features, got {kind or 'a group'}"


def _check_parts(path: Path, group: h5py.Group) -> None:
    """Refuse parts beside the features that declare more than the file holds, before their library reads them."""

    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:  # anndata writes None as an empty dataset
            check_complete(path, name, item)

    for part in ("obs", "obsm", "uns"):
        if isinstance(group.get(part), h5py.Group):
            group[part].visititems(check)


def refuse_shapes(path: Path, source: SlideSource) -> None:
    """Refuse a table whose coordinates are the shapes beside it, which would silently be ignored."""
    if (path / "shapes").is_dir():
        raise SlideError(
            f"{path}: coordinates must be in obsm['spatial'] or in the columns x and y of obs, got only shapes; write "
            f"wsi.fetch.features_anndata(...).write_h5ad(...) with LazySlide, or read {source.writer} as a set"
        )


def _read(path: Path, element: Any) -> Any:
    """An element of AnnData, decoded by its library."""
    from anndata.io import read_elem

    try:
        return read_elem(element)
    except Exception as error:  # The library has errors of its own, which share no class.
        raise SlideError(
            f"{path}: {element.name} must be an element of AnnData: {error}; write the table again", path
        ) from error


def check_unnamed(path: Path, features: str | None) -> None:
    """Check that no name of features would be passed over."""
    if features not in (None, "X"):
        raise SlideError(f"{path}: features must be 'X' or absent for a table of AnnData, got {features!r}")


def require_anndata(path: Path) -> None:
    """Say which extra reads the file."""
    try:
        import anndata  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: AnnData needs an extra: pip install 'disentangled_mil[train,anndata]' ({error})"
        ) from error
