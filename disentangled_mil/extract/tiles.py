"""Tiles of a magnification: their side in level-0 pixels and their corners."""

import torch
from torch import Tensor

from .._checks import check_counts, check_interval

TILE = 224  # pixels of a tile in each direction

_LOWEST, _HIGHEST = 0.3, 100.0  # of magnifications that microscopes have
_MOST_ENLARGED = 1.25  # Scanners of one nominal magnification differ by less.


def tile_side(magnification: float, mpp: float) -> int:
    """Side of a tile of 224 pixels, in whole level-0 pixels.

    A magnification m means 10 / m micrometers per pixel: 0.5 at 20x, 1 at 10x. The side is that of the finest
    magnification 2m, 4m, ... that the scan holds, rounded and doubled again. So one tile of 10x covers four of 20x
    exactly, whatever else is extracted. The side differs by less than 0.3 % from the exact one.

    Args:
        magnification: objective magnification of the tiles.
        mpp: micrometers per pixel of level 0.

    Returns:
        The side.

    Raises:
        TypeError: an argument is no number.
        ValueError: the magnification lies outside of [0.3, 100], or the scan is coarser by more than a quarter.

    Example:
        >>> from disentangled_mil.extract import tile_side
        >>> tile_side(20, 0.2527), tile_side(10, 0.2527)
        (444, 888)
        >>> tile_side(40, 0.5)
        Traceback (most recent call last):
            ...
        ValueError: magnification must be at most 25, because the scan has 0.5 micrometers per pixel, got 40
    """
    check_magnification(magnification)
    check_interval("mpp", mpp, 0, float("inf"), open_low=True)
    most = 10 * _MOST_ENLARGED / mpp
    if magnification > most:
        raise ValueError(
            f"magnification must be at most {most:.3g}, because the scan has {mpp:g} micrometers per pixel, "
            f"got {magnification:g}"
        )
    times = 1
    while magnification * 2 * times <= most:
        times *= 2
    return round(TILE * 10 / (magnification * times * mpp)) * times


def check_magnification(magnification: float) -> None:
    """Check that a magnification is one that microscopes have."""
    check_interval("magnification", magnification, _LOWEST, _HIGHEST)


def tile_corners(size: tuple[int, int], side: int) -> Tensor:
    """Upper left corners of all tiles that lie in a slide, row by row; the first one is (0, 0).

    Args:
        size: width and height of the slide in level-0 pixels.
        side: side of a tile in level-0 pixels.

    Returns:
        Corners (x, y) [N, 2] in level-0 pixels; none where the slide is smaller than a tile.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is less than 1.

    Example:
        >>> from disentangled_mil.extract import tile_corners
        >>> tile_corners((1000, 500), 448).tolist()
        [[0, 0], [448, 0]]
    """
    width, height = check_counts("size", size)
    check_counts("side", (side,))
    y, x = (side * torch.arange(extent // side) for extent in (height, width))
    return torch.cartesian_prod(y, x).flip(1)
