"""Values of a stored slide: read block by block into the tensor that a model gets, and checked on the way."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._stored import Array, StoredSlide
from .source import SlideError

_BLOCK = 16 << 20  # bytes that are read at once, beside the tensor itself
_REMEDY = "; extract the slide again, or leave it out"
_LARGEST = 1e7  # Larger than the coordinates of any slide; an unsigned -1 is larger.


def read_features(slide: StoredSlide, rows: NDArray[np.int64]) -> Tensor:
    """The features of ascending rows [n, C], in the type in which they are stored."""
    name, stored = slide.source.files[0], slide.features
    kind = np.dtype(stored.dtype).newbyteorder("=")
    values = torch.empty(len(rows), slide.source.width, dtype=torch.from_numpy(np.empty(0, kind)).dtype)
    view = values.numpy()
    size = max(1, _BLOCK // max(1, slide.source.width * kind.itemsize))
    size = -(-size // slide.block) * slide.block  # A block that is compressed as one is read once.
    for start in range(0, slide.source.tokens, size):
        first, last = np.searchsorted(rows, (start, start + size))
        if first == last:
            continue
        block = np.asarray(stored[start : start + size])
        part = view[first:last]
        part[:] = block if len(block) == last - first else block[rows[first:last] - start]
        check_finite(f"{name}: features", part, rows[first:last], _REMEDY)
    return values


def read_places(slide: StoredSlide) -> Array | None:
    """The coordinates [N, 2] of all tiles, checked; None where there are none."""
    if slide.coords is None:
        return None
    name, places = slide.source.files[0], slide.coords()
    check_finite(f"{name}: coords", places, np.arange(len(places)), _REMEDY)
    outside = (places < 0) | (places > _LARGEST)
    if outside.any():
        row, column = (int(place) for place in np.argwhere(outside)[0])
        raise SlideError(
            f"{name}: coords must lie between 0 and {_LARGEST:,.0f}, got {places[row, column]} in row {row}, column "
            f"{column}; write the coordinates of upper left corners in the slide's own frame"
        )
    if slide.extent is not None and len(places):
        _check_inside(f"{name}", places.max(axis=0), slide.extent)
    return places


def as_coords(places: Array) -> Tensor:
    """Coordinates as a tensor: native byte order, any integer type as int64."""
    kind = np.dtype(np.int64) if places.dtype.kind in "iu" else places.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(places, dtype=kind))


def check_finite(name: str, values: Array, rows: NDArray[np.int64], remedy: str = "") -> None:
    """Check every number of an array [N, C] and name the first row that holds another."""
    finite = _is_finite(values)
    if not finite.all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        raise SlideError(
            f"{name} must be finite, got {values[row, column]} in row {rows[row]}, column {column}{remedy}"
        )


def _is_finite(values: Array) -> NDArray[np.bool_]:
    if values.dtype == np.float16:
        # The exponent of NaN and infinity has ones only. NumPy converts float16 first, which takes three times as long.
        finite: NDArray[np.bool_] = (values.view(np.uint16) & 0x7C00) != 0x7C00
        return finite
    return np.isfinite(values)


def _check_inside(name: str, largest: Array, extent: tuple[float, float]) -> None:
    """Check that tiles begin inside of the slide."""
    if largest[0] < extent[0] and largest[1] < extent[1]:
        return
    swapped = "; x and y are swapped" if largest[1] < extent[0] and largest[0] < extent[1] else ""
    raise SlideError(
        f"{name}: coords must be (x, y) inside of the slide of {extent[0]:.0f} x {extent[1]:.0f}, got up to "
        f"({largest[0]}, {largest[1]}){swapped}"
    )
