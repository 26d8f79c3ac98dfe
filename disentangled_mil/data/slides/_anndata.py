"""Tables of AnnData, as LazySlide and scverse write them: ``.h5ad``, or a table in the ``.zarr`` of a SpatialData.

Features are ``X``. Where the coordinates are, :mod:`._anndata_places` tells. LazySlide describes its tiles in
``uns["tile_spec"]``, or in a table of that name. Only these parts are read, and each is checked first: it is no link,
and the file holds what it declares.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ._anndata_places import find_places, parts_of, read_anndata_places
from ._hdf5 import check_complete, check_coords, check_features, check_held, raised_in
from ._stored import Array, StoredSlide, number, text
from .source import SlideError, SlideSource

_NOTES = ("tile_spec", "slide_properties", "encoder")
_SMALL = 1 << 16  # bytes. Zarr writes no chunk of zeros alone, so a small part may lack chunks.
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
    values = _features(path, group)
    count, width = check_features(path, values)
    notes = {name: _read(path, part) for name in _NOTES if (part := _part(path, group, f"uns/{name}")) is not None}
    spec = notes.get("tile_spec")
    if spec is None and specs is not None:
        apart = _part(path, specs, "uns", whole=False)
        spec = next((_read(path, _part(path, apart, name)) for name in apart or ()), None)
    spec = spec if isinstance(spec, Mapping) else {}
    slide = notes.get("slide_properties")
    shape = [number(side) for side in np.ravel(slide.get("shape", ()) if isinstance(slide, Mapping) else ())]
    scale = number(spec.get("base_downsample"))
    tile, step = (
        number(spec.get(f"raw_{name}")) or (side * scale if scale and (side := number(spec.get(name))) else None)
        for name in ("width", "stride_width")
    )
    obsm, obs = (_part(path, group, name, whole=False) for name in ("obsm", "obs"))
    for name, part in (("obsm", obsm), ("obs", obs)):
        if hasattr(part, "shape"):
            raise SlideError(f"{path}: {name} must be a group of named parts, got an array; write the table again")
    place = find_places(path, obsm, obs, coords, as_set=as_set or count < 2)
    placed = place is not None
    parts = {name: _part(path, group, name) for name in parts_of(place)}

    def places() -> Array:
        assert place is not None
        if isinstance(place, str) and hasattr(pair := next(iter(parts.values())), "shape"):
            check_coords(path, pair, count, width)  # before it is read
        found = read_anndata_places(path, place, lambda name: _read(path, parts[name]))
        check_coords(path, found, count, width)
        if any(map(_lacks_chunks, parts.values())) and (zeros := int((found == 0).all(-1).sum())) > 1:
            raise SlideError(
                f"{path}: coords must be stored for every patch, got chunks that were never written, and {zeros} "
                "patches at (0, 0); write the table again"
            )
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
    values: Any = _member(path, group, "X", "X")
    if not hasattr(values, "dtype"):
        raise SlideError(f"{path}: {_no_array(values)}")
    if isinstance(values, h5py.Dataset):
        check_complete(path, "X", values)
    else:
        _check_chunks(path, "X", values)
    return values


def _no_array(values: Any) -> str:
    """The error about features that are no dense array."""
    if values is None:
        return "X must be an array of features, got none; store the features as X"
    kind = text(values.attrs.get("encoding-type"))
    if kind in ("csr_matrix", "csc_matrix"):
        return f"X must be a dense array of features, got a sparse {kind}; write it dense, table.X = table.X.toarray()"
    return f"X must be a dense array of features, got {kind or 'a group'}"


def _check_chunks(path: Path, name: str, values: Any) -> None:
    """Refuse a zarr array that declares more than its chunks hold."""
    stored = values.nbytes_stored  # a number before zarr 3
    # Zarr lists all chunks to count them, so a size that is made up is refused first.
    check_held(path, name, values.shape, values.nbytes, stored() if callable(stored) else stored)
    if _lacks_chunks(values):
        raise SlideError(
            f"{path}: {name} must hold the {list(values.shape)} numbers that it declares, got "
            f"{values.nchunks_initialized} of {values.nchunks} chunks; write the table again"
        )


def _part(path: Path, group: Any, name: str, *, whole: bool = True) -> Any:
    """A part of a group by its place, None if it is absent; it is no link, and whole if ``whole``."""
    found = group
    for step in name.split("/"):
        found = _member(path, found, step, name)
    if whole and found is not None:
        _check_whole(path, name, found)
    return found


def _member(path: Path, group: Any, key: str, name: str) -> Any:
    """A member of a group, None if it is absent; a link is refused, because it leads past all checks."""
    link = group.get(key, getlink=True) if isinstance(group, h5py.Group) else None
    if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
        place = link.path if isinstance(link, h5py.SoftLink) else link.filename
        raise SlideError(f"{path}: {name} must be in the file at its place, got a link to {place}; copy it there")
    return group.get(key) if hasattr(group, "get") else None


def _check_whole(path: Path, name: str, item: Any) -> None:
    """Refuse a part that declares more than the file holds, before its library reads it."""
    if isinstance(item, h5py.Dataset):
        if item.shape is not None:  # anndata writes None as an empty dataset
            check_complete(path, name, item)
    elif hasattr(item, "nchunks"):
        if item.nbytes > _SMALL:
            _check_chunks(path, name, item)
    else:
        for key in item:
            _check_whole(path, f"{name}/{key}", _member(path, item, key, f"{name}/{key}"))


def _lacks_chunks(part: Any) -> bool:
    """Whether chunks of a zarr array were never written."""
    return hasattr(part, "nchunks") and part.nchunks_initialized < part.nchunks


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
