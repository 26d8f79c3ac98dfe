"""What every reader hands out: one file, whose metadata alone has been read."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .source import SlideSource

Array = NDArray[Any]


class Rows(Protocol):
    """A stored array of rows, such as datasets of h5py and zarr are."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers."""
        ...

    def __getitem__(self, rows: slice) -> Array:
        """Rows [n, C]."""
        ...


class StoredSlide(NamedTuple):
    """One slide in its file.

    Attributes:
        source: metadata of the file.
        features: features [N, C].
        block: number of rows that are read together at least, because they are compressed together.
        coords: function that reads the coordinates [N, 2]; None where there are none.
        augmented: function that reads flags [N], True for augmented copies of tiles; None where there are none.
        step: function that gives the side of a grid cell in the unit of the coordinates; None where it is not known.
        extent: width and height of the slide in the unit of the coordinates.
    """

    source: SlideSource
    features: Rows
    block: int = 1
    coords: Callable[[], Array] | None = None
    augmented: Callable[[], Array] | None = None
    step: Callable[[], float | None] = lambda: None
    extent: tuple[float, float] | None = None


def number(value: Any) -> float | None:
    """One positive, finite number of metadata, which may be text or an array of one number; None for all else."""
    try:
        found = float(np.asarray(value).item())
    except (TypeError, ValueError):
        return None
    return found if 0 < found < float("inf") else None


def text(value: Any) -> str | None:
    """One text of metadata; None for all else, and for an empty one."""
    value = np.asarray(value).item() if np.size(value) == 1 else None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value.strip() or None if isinstance(value, str) else None


def vector_or_rows(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Number of rows N and width C of an array [N, C], [1, N, C] or [C]; None for other shapes.

    A vector is that of a slide encoder, so a bag of one. An empty vector is an empty slide of unknown width.

    Args:
        shape: shape of the array.

    Returns:
        N and C, or None.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 1:
        return (1, shape[0]) if shape[0] else (0, 0)
    return (shape[0], shape[1]) if len(shape) == 2 else None
