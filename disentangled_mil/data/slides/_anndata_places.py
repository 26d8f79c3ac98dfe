"""Coordinates in AnnData: a key of ``obsm``, or two columns of ``obs``, under the names that are in use.

``obsm["spatial"]`` stands before the columns ``x`` and ``y``, and these before the other names. A table may have one
of the other names. What looks like coordinates under an unknown name is refused, because it would silently be ignored.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ._stored import Array
from .source import SlideError

_KEYS = ("spatial",)
_COLUMNS = (("x", "y"),)
_OTHER_KEYS = ("X_spatial", "coords", "coordinates")
_OTHER_COLUMNS = (("X", "Y"), ("x_coord", "y_coord"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))
_PLACE = re.compile("spatial|coord", re.IGNORECASE)
_X = re.compile(r"(?<![a-z])(x|col|column)(?![a-z])", re.IGNORECASE)  # a word between digits and underscores
_Y = {"x": "y", "col": "row", "column": "row"}

Place = str | tuple[str, str]


def find_places(path: Path, obsm: Any, obs: Any, coords: str | None, *, as_set: bool) -> Place | None:
    """Where the coordinates are, from names alone.

    Args:
        path: file, for errors.
        obsm: group of HDF5 or zarr; None where there is none.
        obs: the same.
        coords: key of ``obsm``; by default the first known one.
        as_set: flag that says that coordinates do not matter, so unknown names are no error.

    Returns:
        A key of ``obsm``, or two columns of ``obs``; None where there are no coordinates.

    Raises:
        SlideError: the key is not there, or names are unknown or ambiguous.
    """
    keys, columns = tuple(obsm or ()), tuple(obs or ())
    if coords is not None:
        if coords not in keys:
            raise SlideError(f"{path}: obsm must have the key {coords!r}, got {', '.join(keys) or 'none'}")
        return coords
    for found in (
        _known(keys, columns, _KEYS, ()),
        _known(keys, columns, (), _COLUMNS),
        _known(keys, columns, _OTHER_KEYS, _OTHER_COLUMNS),
    ):
        if len(found) == 1:
            return found[0]
        if found and not as_set:
            raise SlideError(
                f"{path}: coordinates must be in one place, got {' and '.join(map(_words, found))}; write those that "
                "count to obsm['spatial']"
            )
    if not as_set and (unknown := _unknown(obsm, keys, columns)):
        raise SlideError(
            f"{path}: coordinates must be in obsm['spatial'] or in the columns x and y of obs, got "
            f"{_words(unknown)}; {_remedy(unknown)}"
        )
    return None


def parts_of(place: Place | None) -> tuple[str, ...]:
    """The parts of a table that hold the coordinates of a place, such as ``obs/x`` and ``obs/y``."""
    if isinstance(place, str):
        return (f"obsm/{place}",)
    return tuple(f"obs/{name}" for name in place or ())


def read_anndata_places(path: Path, place: Place, read: Callable[[str], Any]) -> Array:
    """The coordinates at a place.

    Args:
        path: file, for errors.
        place: place that :func:`find_places` returned.
        read: function that reads one of :func:`parts_of` the place.

    Returns:
        An array, whose shape is not checked.

    Raises:
        SlideError: a column holds no numbers.
    """
    read_parts = [read(name) for name in parts_of(place)]
    if isinstance(place, str):
        found = read_parts[0]
    else:
        found = pd.DataFrame({name: pd.Series(column) for name, column in zip(place, read_parts, strict=True)})
    if not isinstance(found, pd.DataFrame):
        return np.asarray(found)
    table = "obs" if isinstance(place, tuple) else f"obsm[{place!r}]"
    return np.stack([_numbers(path, table, found[name]) for name in found], axis=1)


def _numbers(path: Path, table: str, column: "pd.Series[Any]") -> Array:
    """A column as an array; integers that may be missing have a type of their own in pandas."""
    kind: Any = column.dtype
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind):
        name = column.name
        raise SlideError(
            f"{path}: the column {name!r} of {table} must hold numbers, got {kind}; write it as numbers, "
            f"{table}[{name!r}] = pandas.to_numeric({table}[{name!r}])"
        )
    nullable = isinstance(kind, pd.api.extensions.ExtensionDtype)
    return np.asarray(column.to_numpy(float, na_value=np.nan) if nullable else column)


def _known(
    obsm: Iterable[str], columns: Iterable[str], keys: Iterable[str], pairs: Iterable[tuple[str, str]]
) -> list[Place]:
    """The places among known names."""
    return [*(key for key in keys if key in obsm), *(pair for pair in pairs if set(pair) <= set(columns))]


def _unknown(obsm: Any, keys: Iterable[str], columns: Iterable[str]) -> Place | None:
    """What looks like coordinates: a key of ``obsm`` by name and shape, or two columns of one name for x and for y."""
    for key in keys:
        if _PLACE.search(key) and tuple(getattr(obsm[key], "shape", (0, 2)))[1:] in ((2,), (3,)):
            return key
    for name in columns:
        found = _X.search(name)
        if found:
            second = _Y[found[1].lower()]
            other = f"{name[: found.start()]}{second if found[1].islower() else second.upper()}{name[found.end() :]}"
            if other in columns:
                return name, other
    return None


def _words(place: Place) -> str:
    return f"obsm[{place!r}]" if isinstance(place, str) else f"the columns {place[0]} and {place[1]} of obs"


def _remedy(place: Place) -> str:
    if isinstance(place, str):
        return f"name it by coords = {place!r}"
    return f"write them there, table.obsm['spatial'] = table.obs[{list(place)}].to_numpy()"
