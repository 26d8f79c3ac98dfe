"""The side of the tiles of one slide, which coordinates show where no metadata tell it."""

from pathlib import Path
from typing import NamedTuple

from ..._errors import reading
from ...bags import lattice_step
from ._opening import open_slide
from ._values import as_coords, read_places
from .source import SlideError

_LEAST_TILES = 32  # Among fewer tiles, the most frequent distance may be a hole in the tissue.


class TileSide(NamedTuple):
    """The side of the tiles of a slide.

    Attributes:
        path: file of the slide.
        side: side of a tile, in the unit of the coordinates.
        unit: unit of the coordinates, as in :class:`~.source.SlideSource`.
        is_stride: flag, True for the stride of the coordinates, which is less than the side where tiles overlap.
    """

    path: Path
    side: float
    unit: str | None
    is_stride: bool


def tile_side(
    path: str | Path,
    *,
    features: str | None = None,
    coords: str | None = None,
    metadata_alone: bool = False,
    stride_alone: bool = False,
) -> TileSide | None:
    """The side of the tiles of a slide.

    Args:
        path: file of the slide.
        features: name of the features, see :func:`~.reading.read_bag`.
        coords: name of the coordinates, see :func:`~.reading.read_bag`.
        metadata_alone: flag that leaves coordinates unread. Otherwise their stride is the side of tiles without
            metadata, if there are at least 32.
        stride_alone: flag that ignores the side in the metadata.

    Returns:
        The side; None where it is not known, and where the unit is a pixel of the tile, in which all sides are equal.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is refused, or its coordinates show no lattice.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import write_bag
        >>> from disentangled_mil.data.slides.tile_size import tile_side
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(64, 8), 448 * torch.cartesian_prod(torch.arange(8), torch.arange(8)))
        >>> tile_side(path).side
        448.0
    """
    path = Path(path)
    with open_slide(path, features, coords, as_set=metadata_alone) as slide:
        source = slide.source
        side = None if stride_alone else source.tile
        is_stride = side is None
        if source.unit == "tile pixels":
            return None
        if is_stride and source.tokens >= _LEAST_TILES and not metadata_alone:
            places = read_places(slide)
            with reading(path, kind=SlideError):
                side = None if places is None else lattice_step(as_coords(places))
    return None if side is None else TileSide(path, side, source.unit, is_stride)
