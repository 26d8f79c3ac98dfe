"""Patch features of one slide in one HDF5 file, as CLAM, TRIDENT and STAMP write them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .._checks import check_shape
from .._files import replacing
from ..bags import Bag

_FEATURES = ("features", "feats")
_COORDS = ("coords", "coordinates")
_AUGMENTED = "augmented"
_SIDES = ("patch_size_level0", "patch_size", "overlap")


def read_bag(
    path: str | Path,
    *,
    features: str | None = None,
    coords: str | None = None,
    drop_augmented: bool = False,
    step: float | None = None,
) -> Bag:
    """Read one slide as a batch of one bag.

    ==============  ==========================================================================================
    dataset         content
    ==============  ==========================================================================================
    ``features``    patch features (TRIDENT, CLAM; STAMP calls them ``feats``)
    ``coords``      optional, or ``coordinates``: (x, y) of every patch. Its attribute ``patch_size_level0``
                    (TRIDENT), less ``overlap``, is the side of a grid cell
    ``augmented``   optional (STAMP): True where a patch is an augmented copy of another with its coordinates
    ==============  ==========================================================================================

    A leading axis of 1 is dropped. Features stay in the type in which they are stored.

    Args:
        path: HDF5 file.
        features: name of the features dataset; by default ``features`` or ``feats``.
        coords: name of the coordinates dataset, which must then be there; by default ``coords`` or ``coordinates``, if
            present.
        drop_augmented: whether augmented patches are left out.
        step: side of a grid cell in the unit of the coordinates; by default from the file's attributes, else
            inferred (see :meth:`~disentangled_mil.bags.Grid.from_coords`).

    Shape:
        in the file: features [N, C] or [1, N, C], coords [N, 2] or [1, N, 2], augmented [N].

    Returns:
        A bag with B = 1, on the slide's own grid if it has coordinates, else a set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no readable HDF5 file, lacks a dataset, or holds no patch, features or coordinates of a
            wrong shape or type, coordinates under an unknown name, or a value that is not finite. The message names
            file, row and reason.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.hdf5 import read_bag, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8), torch.tensor([[0, 0], [448, 0], [448, 448]]), step=448)
        >>> bag = read_bag(path)
        >>> bag.patches.shape, bag.grid.shapes
        (torch.Size([1, 3, 8]), ((2, 2),))
    """
    values, places, sides = _read(Path(path), features, coords, drop_augmented)
    if places is None:
        _refuse_other_coordinates(Path(path))
    if step is None and "patch_size_level0" in sides:
        step = _step(path, sides)
    try:
        return Bag.from_slide(values, places, step=step)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def merge_slides(paths: Sequence[str | Path], *, features: str | None = None, drop_augmented: bool = False) -> Bag:
    """Read several slides as one bag without coordinates: the set of all their patches.

    Args:
        paths: files, at least one, e.g. all slides of a patient.
        features: name of the features dataset, see :func:`read_bag`.
        drop_augmented: whether augmented patches are left out.

    Returns:
        A bag with B = 1.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no file, feature widths differ, or :func:`read_bag` would refuse a file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.hdf5 import merge_slides, write_bag
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, count in (("a.h5", 2), ("b.h5", 3)):
        ...     write_bag(folder / name, torch.randn(count, 8))
        >>> merge_slides([folder / "a.h5", folder / "b.h5"]).patches.shape
        torch.Size([1, 5, 8])
    """
    if not paths:
        raise ValueError("paths must hold at least one file, got none")
    slides = [_read(Path(path), features, None, drop_augmented)[0] for path in paths]
    for path, slide in zip(paths, slides, strict=True):
        if slide.shape[1] != slides[0].shape[1]:
            raise ValueError(
                f"slides of one bag must have one feature width, got {slides[0].shape[1]} in {paths[0]} "
                f"and {slide.shape[1]} in {path}"
            )
    return Bag.from_slide(torch.cat(slides))


def slide_width(path: str | Path, *, features: str | None = None) -> int:
    """The feature width C of a slide's file, from its metadata alone.

    Args:
        path: HDF5 file.
        features: name of the features dataset, see :func:`read_bag`.

    Returns:
        The number of features per patch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, lacks its features, or they are empty or of a wrong shape or type.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.hdf5 import slide_width, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8))
        >>> slide_width(path)
        8
    """
    path = Path(path)
    with _open(path) as file:
        return int(_features(path, file, features).shape[-1])


def has_coords(path: str | Path) -> bool:
    """Whether a slide's file has coordinates that :func:`read_bag` finds, from its metadata alone.

    Args:
        path: HDF5 file.

    Returns:
        Whether there are coordinates.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, or has coordinates under an unknown name only.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.hdf5 import has_coords, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8))
        >>> has_coords(path)
        False
    """
    path = Path(path)
    with _open(path) as file:
        if any(name in file for name in _COORDS):
            return True
    _refuse_other_coordinates(path)
    return False


def write_bag(path: str | Path, features: Tensor, coords: Tensor | None = None, *, step: float | None = None) -> None:
    """Write one slide in the layout that :func:`read_bag` reads.

    The file appears whole or not at all; an old file stays until then.

    Args:
        path: HDF5 file in a folder that exists.
        features: patch features in float16, float32 or float64, which is kept.
        coords: (x, y) of every patch.
        step: side of a grid cell in the unit of ``coords``, stored as the attribute ``patch_size_level0``.

    Shape:
        ``features`` [N, C] with N >= 1, ``coords`` [N, 2].

    Raises:
        TypeError: ``features`` has another dtype.
        ValueError: shapes disagree, a value is not finite, or ``step`` is not positive or comes without ``coords``.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.hdf5 import read_bag, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(2, 4).half())
        >>> read_bag(path).patches.dtype
        torch.float16
    """
    count = check_shape("features", features, "N C")["N"]
    if features.dtype not in (torch.float16, torch.float32, torch.float64):
        raise TypeError(f"features must be float16, float32 or float64, got {features.dtype}")
    if count == 0:
        raise ValueError("features must hold at least one patch, got none")
    values = features.detach().cpu().numpy()
    _check_finite("features", values)
    if step is not None and (coords is None or not 0 < step < float("inf")):
        raise ValueError(f"step must be positive and finite and come with coords, got {step}")
    places = None
    if coords is not None:
        check_shape("coords", coords, "N 2", {"N": count})
        places = coords.detach().cpu().numpy()
        _check_finite("coords", places)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("features", data=values)
        if places is not None:
            dataset = file.create_dataset(_COORDS[0], data=places)
            if step is not None:
                dataset.attrs["patch_size_level0"] = step


def _read(
    path: Path, features: str | None, coords: str | None, drop_augmented: bool
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Checked features [N, C] and coordinates [N, 2] or None, and the sizes in the attributes of the coordinates."""
    with _open(path) as file:
        values = _rows(_features(path, file, features))
        places, sides = None, {}
        if coords is not None or any(name in file for name in _COORDS):
            dataset = _dataset(path, file, _COORDS if coords is None else (coords,))
            if dataset.dtype.kind not in "iuf":
                raise ValueError(f"{path}: coords must be numbers, got {dataset.dtype}")
            places, sides = _rows(dataset), {name: dataset.attrs[name] for name in _SIDES if name in dataset.attrs}
            if places.shape != (len(values), 2):
                raise ValueError(
                    f"{path}: coords must have shape [N, 2] = [{len(values)}, 2] like the features, "
                    f"got {list(places.shape)}"
                )
            _check_finite(f"{path}: coords", places)
        _check_finite(f"{path}: features", values)
        if drop_augmented and _AUGMENTED in file:
            augmented = _rows(_dataset(path, file, (_AUGMENTED,)), axes=1)
            if augmented.shape != (len(values),):
                raise ValueError(
                    f"{path}: augmented must have one flag per patch, [{len(values)}], got {list(augmented.shape)}"
                )
            original = ~augmented.astype(bool)
            if not original.any():
                raise ValueError(f"{path}: a slide must hold at least one patch, got only augmented ones")
            values = values[original]
            places = places if places is None else places[original]
    return _tensor(values), None if places is None else _tensor(places), sides


def _refuse_other_coordinates(path: Path) -> None:
    """Refuse coordinates under an unknown name, which would silently be ignored."""
    with _open(path) as file:
        for name, item in file.items():
            shape = tuple(getattr(item, "shape", None) or ())
            if "coord" in name.casefold() and len(shape) in (2, 3) and shape[-1] == 2:
                raise ValueError(
                    f"{path}: coordinates must be in a dataset {' or '.join(_COORDS)}, "
                    f"or be named by the argument coords, got {name}"
                )


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; an error of HDF5 becomes one that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: must be a complete HDF5 file: {error}") from error


def _features(path: Path, file: h5py.File, name: str | None) -> h5py.Dataset:
    """The features dataset, its metadata checked."""
    dataset = _dataset(path, file, _FEATURES if name is None else (name,))
    shape = dataset.shape
    if dataset.dtype.kind != "f":
        raise ValueError(f"{path}: features must be floating-point numbers, got {dataset.dtype}")
    if len(shape) != 2 and not (len(shape) == 3 and shape[0] == 1):
        raise ValueError(f"{path}: features must have shape [N, C] or [1, N, C], got {list(shape)}")
    if shape[-1] == 0:
        raise ValueError(f"{path}: features must have at least one number per patch, got shape {list(shape)}")
    if shape[-2] == 0:
        raise ValueError(f"{path}: a slide must hold at least one patch, got none")
    return dataset


def _dataset(path: Path, file: h5py.File, names: Sequence[str]) -> h5py.Dataset:
    """The first dataset of one of the names."""
    for name in names:
        if isinstance(file.get(name), h5py.Dataset):
            if file[name].shape is None:
                raise ValueError(f"{path}: {name} must be an array, got an empty dataset")
            return file[name]
    present = ", ".join(f"{name} {list(getattr(item, 'shape', ['group']) or [])}" for name, item in file.items())
    raise ValueError(f"{path}: must have a dataset {' or '.join(names)}, got {present or 'an empty file'}")


def _step(path: str | Path, sides: Mapping[str, Any]) -> float:
    """Side of a grid cell in level-0 pixels: the patch size minus the overlap in the attributes."""
    try:
        numbers = {name: float(np.asarray(value).item()) for name, value in sides.items()}
        side = numbers["patch_size_level0"]
        step = side - round(numbers.get("overlap", 0) * side / numbers.get("patch_size", side))
    except (TypeError, ValueError, ArithmeticError):
        step = 0.0
    if not 0 < step < float("inf"):
        noted = ", ".join(f"{name} = {value!r}" for name, value in sides.items())
        raise ValueError(f"{path}: attributes of coords must give a positive side of a grid cell, got {noted}")
    return step


def _rows(dataset: h5py.Dataset, axes: int = 2) -> np.ndarray[Any, Any]:
    """A dataset as an array, without a leading axis of 1."""
    values = np.asarray(dataset[()])
    return values[0] if values.ndim == axes + 1 and len(values) == 1 else values


def _check_finite(name: str, values: np.ndarray[Any, Any]) -> None:
    """Check every number of an array [N, C] and name the first row that holds another."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        raise ValueError(f"{name} must be finite, got {values[row, column]} in row {row}, column {column}")


def _tensor(values: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of the same values: native byte order, coordinates of any integer type as int64."""
    kind = np.dtype(np.int64) if values.dtype.kind in "iu" else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))
