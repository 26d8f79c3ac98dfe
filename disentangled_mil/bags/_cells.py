"""From the coordinates of a bag's tokens to cells of a lattice.

The side of a cell, if it is not given, follows from three rules:

1. It is the commonest gap between neighbors in a row or column, because each piece of tissue may have its own lattice.
2. If few tokens have such a neighbor, or distinct coordinates would share cells (staggered rows), it is a gap between
   columns or rows of the whole bag. The smallest gap counts that is at least half as common as the commonest.
3. Gaps within 1% of each other are one gap, whose size is their mean, because coordinates are often rounded.
"""

import torch
from torch import Tensor

_MOST = 0.9  # Share of tokens with a neighbor, and of distinct coordinates with a cell of their own.
_ROUNDING = 0.01  # Relative difference of two gaps that are equal but for rounding.
_CELLS_PER_TOKEN, _SMALL_BAG = 200, 80  # The limit of the area. A small bag may be as large as one of 80 tokens.
_CROWD = 128  # The most distinct coordinates of a bag that is smaller than one step.


def cells_of_bag(coords: Tensor, step: float | None) -> tuple[Tensor, tuple[int, int]]:
    """Cells [n, 2] of the real tokens of one bag, and the (width, height) that they span."""
    if len(coords) == 0:
        return coords.long(), (1, 1)
    if not torch.isfinite(coords).all():
        raise ValueError("coords must be finite where mask is True, got NaN or infinity")
    side = _side_of_cells(coords) if step is None else step
    cells = _cells_of(coords, side)
    extent = cells.amax(0) + 1
    if extent.prod() > _CELLS_PER_TOKEN * (len(coords) + _SMALL_BAG):
        raise ValueError(
            f"coords must lie on a grid: {len(coords)} tokens would span {extent[0]:.0f} x {extent[1]:.0f} cells "
            f"of side {side:g}; give the patch size as step"
        )
    if (coords.amax(0) - coords.amin(0) < side).all() and (distinct := len(torch.unique(coords, dim=0))) > _CROWD:
        raise ValueError(
            f"step must be the side of a cell in the unit of coords, got {side:g}: {distinct} different coordinates "
            f"would share {extent[0]:.0f} x {extent[1]:.0f} cells"
        )
    width, height = (int(size) for size in extent)
    return cells.long(), (width, height)


def _side_of_cells(coords: Tensor) -> float:
    """The side of a cell, by the rules above."""
    neighbors = torch.cat([_gaps_to_neighbors(coords), _gaps_to_neighbors(coords.flip(1))])
    if len(neighbors):
        gaps, counts = _count(neighbors)
        side, count = _mean_near(neighbors, gaps[counts.argmax()]), int(counts.max())
        cells, distinct = (len(torch.unique(places, dim=0)) for places in (_cells_of(coords, side), coords))
        if count >= _MOST * len(coords) and cells >= _MOST * distinct:
            return side
    between = torch.cat([torch.unique(coords[:, axis]).diff() for axis in (0, 1)])
    if len(between) == 0:
        return 1.0  # All tokens lie on one place.
    gaps, counts = _count(between)
    return _mean_near(between, gaps[2 * counts >= counts.max()][0])


def _cells_of(coords: Tensor, side: float) -> Tensor:
    """Column and row of every token [n, 2], still floating-point."""
    # Not round(), which takes halves to even cells.
    return ((coords - coords.amin(0)) / side + 0.5).floor()


def _gaps_to_neighbors(coords: Tensor) -> Tensor:
    """From every token [n, 2] to the next one of the same row, if there is one."""
    by_column = coords[coords[:, 0].argsort()]
    by_row = by_column[by_column[:, 1].argsort(stable=True)]
    right, down = by_row.diff(dim=0).unbind(1)
    return right[(down == 0) & (right > 0)]


def _count(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct gaps, ascending, and the number of gaps that equal each but for rounding."""
    ordered = gaps.sort().values
    values = torch.unique(ordered)
    above = torch.searchsorted(ordered, values * (1 + _ROUNDING), right=True)
    return values, above - torch.searchsorted(ordered, values * (1 - _ROUNDING))


def _mean_near(gaps: Tensor, gap: Tensor) -> float:
    """The mean of the gaps that equal one but for rounding."""
    return float(gaps[(gaps - gap).abs() <= _ROUNDING * gap].mean())
