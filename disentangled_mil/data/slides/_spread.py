"""A part of the tiles of a slide, spread evenly over its tissue.

Tiles are put in the order of a Z curve, which visits a square before it leaves it, and every n-th of them is taken from
a random start. So each square of the curve keeps its share of tiles, up to one. Tiles without coordinates are drawn at
random.
"""

import numpy as np
from numpy.typing import NDArray

from ._stored import Array

_BITS = 16  # Cells per axis of the curve, 65,536, are more than tiles per axis of any slide.


def spread_rows(count: int, most: int, coords: Array | None, seed: int) -> NDArray[np.int64]:
    """Rows of at most ``most`` of ``count`` tiles, ascending.

    Args:
        count: number of tiles.
        most: largest number of tiles to keep.
        coords: coordinates [N, 2] of the tiles; None where there are none.
        seed: seed of the start, or of the draw.

    Returns:
        Rows.
    """
    if count <= most:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    if coords is None:
        return np.sort(generator.permutation(count)[:most])
    every = count / most
    # The last one may round up to the number of tiles.
    places = np.minimum((generator.random() * every + every * np.arange(most)).astype(np.int64), count - 1)
    return np.sort(np.argsort(_z_order(coords), kind="stable")[places])


def _z_order(coords: Array) -> NDArray[np.int64]:
    """Place of every tile on the Z curve: the bits of column and row, one after the other."""
    relative = coords.astype(np.float64) - coords.min(axis=0)
    cells = (relative * ((2**_BITS - 1) / max(relative.max(), 1e-300))).astype(np.int64)
    order = np.zeros(len(coords), dtype=np.int64)
    for bit in range(_BITS):
        for axis in (0, 1):
            order |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return order
