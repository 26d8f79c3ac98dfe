"""HDF5 files: opened and checked from their metadata, so that no declared size is believed that the file cannot hold.

HDF5 fills what was never written with zeros, and what lies in other files that are gone too. Both would be read as
features, so both are refused. External storage is refused also where it is there: it reads any file of the computer as
numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, prod
from pathlib import Path
from traceback import walk_tb
from typing import Any

import h5py
import numpy as np

from ._stored import Array, vector_or_rows
from .source import SlideError

# Deflate shrinks at most by 1,032. What declares more was made to fill the memory.
_MOST_COMPRESSED = 1100

FEATURES = ("features", "feats", "Res_feature")
COORDS = ("coords", "coordinates")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; an error of HDF5 becomes one that names the file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except PermissionError as error:
        raise PermissionError(f"{path}: must be readable, got no permission to read it") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SlideError) or not raised_in(error, "h5py"):
            raise
        raise SlideError(f"{path}: must be a complete HDF5 file: {error}; write the file again") from error


def raised_in(error: Exception, *packages: str) -> bool:
    """Whether an error comes out of a library, which finds a file damaged, and not out of what is done with the file.

    Args:
        error: error that was caught.
        *packages: names of libraries.

    Returns:
        Whether a frame of one of them is in its traceback.
    """
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(module.partition(".")[0] in packages for module in modules)


def dataset(path: Path, group: h5py.Group, names: Sequence[str]) -> h5py.Dataset:
    """The first dataset of one of the names; the file holds all that it declares."""
    for name in names:
        found = group.get(name)
        if isinstance(found, h5py.Dataset):
            check_complete(path, name, found)
            return found
        link = group.get(name, getlink=True) if found is None else None
        if isinstance(link, h5py.ExternalLink):
            raise SlideError(
                f"{path}: {name} must be in the file, got a link to {link.filename}, which is not there; "
                "copy the features into one file"
            )
    present = ", ".join(f"{name} {list(getattr(item, 'shape', ['group']) or [])}" for name, item in group.items())
    wanted = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    raise SlideError(f"{path}: must have a dataset {wanted}, got {present or 'an empty file'}{_remedy(group, names)}")


def _remedy(group: h5py.Group, names: Sequence[str]) -> str:
    """What to do if a dataset is not there: name another one, or another folder."""
    arrays = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset) and item.shape}
    if set(names) <= set(COORDS):
        return ""
    if arrays and set(arrays) <= set(COORDS):
        return "; the file holds the tiles alone, as in the folder patches: name the folder of the features"
    like = [name for name, item in arrays.items() if item.dtype.kind == "f" and name not in COORDS]
    return f"; name it by features = {like[0]!r}" if like else ""


def check_features(path: Path, data: Any) -> tuple[int, int]:
    """Number of rows N and width C of features, from their metadata."""
    if np.dtype(data.dtype).kind != "f" or data.dtype.itemsize > 8:
        raise SlideError(
            f"{path}: features must be floating-point numbers of 16, 32 or 64 bits, got {data.dtype}; store them as "
            "float32"
        )
    sizes = vector_or_rows(data.shape)
    if sizes is None:
        raise SlideError(f"{path}: features must have shape [N, C], [1, N, C] or [C], got {list(data.shape)}")
    if sizes[0] and not sizes[1]:
        raise SlideError(f"{path}: features must have at least one number per patch, got shape {list(data.shape)}")
    return sizes


def are_of_tiles_behind(count: int, shape: tuple[int, ...]) -> bool:
    """Whether coordinates beside one vector are those of the tiles that a slide encoder summed up in it."""
    return count == 1 and len(shape) in (2, 3) and shape[-1] == 2 and shape[-2] != 1


def read_coords(path: Path, data: Any, count: int, width: int, features: str = "") -> Array:
    """Coordinates [N, 2] of N patches with C features, which may be in another file."""
    check_coords(path, data, count, width, features)
    return read_rows(data)


def check_coords(path: Path, data: Any, count: int, width: int, features: str = "") -> None:
    """Check the type and shape of the coordinates of N patches, [N, 2] or [1, N, 2]."""
    if np.dtype(data.dtype).kind not in "iuf" or data.dtype.itemsize > 8:
        raise SlideError(f"{path}: coords must be numbers of at most 64 bits, got {data.dtype}")
    shape = tuple(data.shape)[1:] if len(data.shape) == 3 and data.shape[0] == 1 else tuple(data.shape)
    if shape == (count, 2):
        return
    if shape == (width, 2):
        raise SlideError(
            f"{path}: features{features} must have shape [N, C] = [{width}, {count}] like the {width} coords, got "
            f"{[count, width]}; store them transposed"
        )
    remedy = "extract the slide again"
    if shape == (2, count):
        remedy = "store them transposed"
    elif len(shape) == 2 and shape[0] == count:
        remedy = "keep (x, y) of the upper left corners"
    raise SlideError(
        f"{path}: coords must have shape [N, 2] = [{count}, 2] like the features{features}, got {list(data.shape)}; "
        f"{remedy}"
    )


def read_rows(data: Any, axes: int = 2) -> Array:
    """A dataset as an array, without a leading axis of 1."""
    values = np.asarray(data[()])
    return values[0] if values.ndim == axes + 1 and len(values) == 1 else values


def check_complete(path: Path, name: str, data: h5py.Dataset) -> None:
    """Refuse a dataset whose content is not all in the file, or in those that it is a view of."""
    if data.shape is None:
        raise SlideError(f"{path}: {name} must be an array, got an empty dataset")
    if data.external:
        files = ", ".join(str(entry[0]) for entry in data.external)
        raise SlideError(f"{path}: {name} must be in the file, got external storage in {files}; copy it into one file")
    if data.is_virtual:
        _check_view(path, name, data)
        return
    if not prod(data.shape):
        return
    stored = data.id.get_storage_size()
    if data.chunks:
        wanted = prod(ceil(size / chunk) for size, chunk in zip(data.shape, data.chunks, strict=True))
        found, unit = data.id.get_num_chunks(), "chunks"
    else:
        wanted, found, unit = data.nbytes, stored, "bytes"
    if found < wanted:
        raise SlideError(
            f"{path}: {name} must hold the {list(data.shape)} numbers that it declares, got {found} of {wanted} "
            f"{unit}; extract the slide again"
        )
    check_held(path, name, data.shape, data.nbytes, stored)


def check_held(path: Path, name: str, shape: Sequence[int], declared: int, stored: int) -> None:
    """Refuse an array that declares more bytes than the stored ones can hold, however compressed."""
    if declared > _MOST_COMPRESSED * stored:
        raise SlideError(
            f"{path}: {name} must hold the {list(shape)} numbers that it declares, got {stored} bytes for {declared}; "
            "extract the slide again"
        )


def _check_view(path: Path, name: str, data: h5py.Dataset) -> None:
    """Refuse a virtual dataset unless its sources are there, are no views themselves, and fill it."""
    union = h5py.h5s.create_simple(data.shape)
    union.select_none()
    for source in data.virtual_sources():
        place = path if source.file_name == "." else path.parent / source.file_name
        if not place.is_file():
            raise SlideError(
                f"{path}: {name} must be in the file, got a view of {source.file_name}, which is not there; "
                "copy the features into one file"
            )
        with open_hdf5(place) as file:
            found = file.get(source.dset_name)
            if not isinstance(found, h5py.Dataset) or found.is_virtual or not _selects(source, found.shape):
                raise SlideError(
                    f"{path}: {name} must be in the file, got a view of {source.dset_name} in {source.file_name}, "
                    "which does not hold it; copy the features into one file"
                )
            check_complete(place, source.dset_name, found)
        _unite(union, source.vspace)
    filled = union.get_select_npoints()
    if filled < prod(data.shape):
        raise SlideError(
            f"{path}: {name} must hold the {list(data.shape)} numbers that it declares, got a view of {filled}; "
            "copy the features into one file"
        )


def _unite(union: Any, part: Any) -> None:
    """Add what a part of a view fills to what others fill."""
    kind = part.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        union.select_all()
    elif kind == h5py.h5s.SEL_HYPERSLABS and part.is_regular_hyperslab():
        start, stride, count, block = part.get_regular_hyperslab()
        union.select_hyperslab(start, count, stride, block, op=h5py.h5s.SELECT_OR)
    elif kind == h5py.h5s.SEL_HYPERSLABS:
        for first, last in part.get_select_hyper_blocklist():
            size = tuple(int(end - begin) + 1 for begin, end in zip(first, last, strict=True))
            union.select_hyperslab(tuple(map(int, first)), size, op=h5py.h5s.SELECT_OR)


def _selects(source: Any, shape: tuple[int, ...]) -> bool:
    """Whether what a view takes from a source lies in the source's shape."""
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return bool(source.vspace.get_select_npoints() == prod(shape))
    _, last = source.src_space.get_select_bounds()
    return len(last) == len(shape) and all(end < size for end, size in zip(last, shape, strict=True))
