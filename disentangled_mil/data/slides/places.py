"""Where the tiles of slides lie, without reading their features."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..._errors import reading
from ...bags import Grid, lattice_step
from ._choice import Choice, share_tiles
from ._opening import as_paths, check_step, open_slide
from ._stored import Array, StoredSlide
from ._values import as_coords, read_places
from .source import SlideError, SlideSource

_LARGEST_TILE = 16_384  # 512 pixels at 1.25x of a scan at 40x. A longer stride is the distance of far tiles.


class TilePlaces(NamedTuple):
    """Where the tiles of one slide lie.

    Attributes:
        source: writer, encoder, magnification and tile size.
        coords: upper left corners (x, y) of the tiles [n, 2]; None where the file has none.
        tile: side of a tile in the unit of the coordinates, from the metadata or else the stride; None where the file
            does not show it.
    """

    source: SlideSource
    coords: Tensor | None
    tile: float | None


def tile_places(
    *paths: str | Path,
    features: str | None = None,
    coords: str | None = None,
    drop_augmented: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
) -> tuple[TilePlaces, ...]:
    """Where the tiles of :func:`read_bag` lie, file by file: those of the bag in its order, without their features.

    Args:
        *paths: files of one bag, at least one.
        features: name of the features, see :func:`read_bag`.
        coords: name of the coordinates, see :func:`read_bag`.
        drop_augmented: flag that leaves out augmented tiles.
        max_tokens: largest number of tiles to keep.
        seed: seed of the choice of these tiles.

    Returns:
        The places of every file. A file without tiles has none.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
        ValueError: :func:`read_bag` would refuse the coordinates of a file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import tile_places, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(2, 8), torch.tensor([[0, 0], [448, 0]]), step=448)
        >>> (places,) = tile_places(path)
        >>> places.coords.tolist(), places.tile
        ([[0, 0], [448, 0]], 448.0)
    """
    files = as_paths(paths)
    found = []
    for path, share in zip(files, share_tiles(files, max_tokens, features, coords), strict=True):
        with open_slide(path, features, coords, as_set=False) as slide:
            stored = read_places(slide) if slide.source.tokens else None
            if stored is None:
                found.append(TilePlaces(slide.source, None, slide.source.tile))
                continue
            every = as_coords(stored)
            rows, _ = Choice(drop_augmented, share, seed).of(slide, None if share is None else stored)
            found.append(TilePlaces(slide.source, every[rows], slide.source.tile or _tile(lattice_step(every))))
    return tuple(found)


def check_places(
    path: str | Path, *, step: float | None = None, features: str | None = None, coords: str | None = None
) -> None:
    """Check the coordinates of a slide as :func:`read_bag` does, without reading its features.

    Args:
        path: file of the slide.
        step: side of a grid cell, see :func:`read_bag`.
        features: name of the features, see :func:`read_bag`.
        coords: name of the coordinates, see :func:`read_bag`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: :func:`read_bag` would refuse the file or its coordinates.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import check_places, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8), torch.tensor([[0, 0], [448, 0], [448, -448]]), step=448)
        >>> check_places(path)
        Traceback (most recent call last):
            ...
        disentangled_mil.data.slides.source.SlideError: ...slide.h5: coords must lie between 0 and 10,000,000, got ...
    """
    (path,) = as_paths([path])
    check_step(step)
    with open_slide(path, features, coords, as_set=False) as slide:
        places = read_places(slide)
        if places is not None and slide.source.tokens:
            with reading(path, kind=SlideError):
                corners, side, _ = lattice(slide, places, step)
                Grid.from_coords(corners, step=side)


def lattice(slide: StoredSlide, places: Array, step: float | None) -> tuple[Tensor, float | None, SlideSource]:
    """Coordinates, the side of a grid cell, and the source with the size of a tile."""
    coords, source = as_coords(places), slide.source
    if step is None:
        step = slide.step()
    if step is None:
        # All tiles count, also those that are not kept. Overlapping tiles are nearer than their size.
        stride = lattice_step(coords)
        step = min((side for side in (stride, source.tile) if side is not None), default=None)
        source = source._replace(tile=source.tile or _tile(stride))
    return coords, step, source


def _tile(stride: float | None) -> float | None:
    """The side of a tile that a stride shows, if it is none of tiles that lie far apart."""
    return None if stride is None or stride > _LARGEST_TILE else stride
