"""From the coordinates of a bag's tokens to cells of a lattice."""

import torch
from torch import Tensor

_CELLS_ALLOWED = 16_384
_CELLS_ALLOWED_PER_TOKEN = 200
# So few cells for so many different coordinates are no layout of a bag.
_FEWEST_CELLS, _CROWD = 4, 128
# In pieces of tissue: equal gaps to neighbors for each token, and cells for each of the distinct coordinates.
_NEIGHBORS, _DISTINCT = 0.75, 0.95
# How much gaps between neighbors may differ by rounding.
_ROUNDING = 0.01
# How common a gap must be, compared with the commonest, to be a cell rather than a token that lies askew.
_OFTEN = 0.25


def cells_of_bag(coords: Tensor, step: float | None) -> tuple[Tensor, tuple[int, int]]:
    """Cells [n, 2] of one bag's real tokens and the (width, height) that they span."""
    if len(coords) == 0:
        return coords.long(), (1, 1)
    if not torch.isfinite(coords).all():
        raise ValueError("coords must be finite where mask is True, got NaN or infinity")
    side = step if step is not None else _side_of_cells(coords)
    cells = _cells_of(coords, side)
    extent = cells.amax(0) + 1
    allowed = _CELLS_ALLOWED + _CELLS_ALLOWED_PER_TOKEN * len(coords)
    if extent.prod() > allowed:
        raise ValueError(
            f"coords must lie on a grid: {len(coords)} tokens would span {extent[0]:.0f} x {extent[1]:.0f} cells "
            f"of side {side:g}; give the patch size as step"
        )
    if step is not None and len(coords) > _CROWD and extent.prod() <= _FEWEST_CELLS:
        different = len(torch.unique(coords, dim=0))
        if different > _CROWD:
            raise ValueError(
                f"step must be the side of a cell in the unit of coords: {different} different coordinates would share "
                f"{extent[0]:.0f} x {extent[1]:.0f} cells of side {step:g}"
            )
    width, height = (int(size) for size in extent)
    return cells.long(), (width, height)


def _side_of_cells(coords: Tensor) -> float:
    """The commonest gap between neighbors of one row or column, where most tokens [n, 2] have such a neighbor.

    Every piece of tissue may have a lattice of its own, and the gaps between distinct coordinates tell nothing. Among
    few tokens here and there it is those that tell, and next neighbors that do not.
    """
    gap, count = _commonest(torch.cat([_gaps(coords), _gaps(coords.flip(1))]))
    # Every other cell may be empty, as on a checkerboard: then neighbors would share cells.
    if count >= _NEIGHBORS * len(coords) and _distinct(coords, gap) >= _DISTINCT:
        return gap
    gaps = torch.cat([torch.unique(coords[:, axis]).diff() for axis in (0, 1)])
    gap, _ = _commonest(gaps)
    if _distinct(coords, gap) < 1:
        # Of very few tokens the commonest gap may be several cells.
        values, counts = torch.unique(gaps, return_counts=True)
        gap = float(values[counts >= _OFTEN * counts.max()].min())
    return gap


def _distinct(coords: Tensor, side: float) -> float:
    """How many cells there are for each of the distinct coordinates."""
    return len(torch.unique(_cells_of(coords, side), dim=0)) / len(torch.unique(coords, dim=0))


def _cells_of(coords: Tensor, side: float) -> Tensor:
    """Column and row of every token [n, 2], still floating-point."""
    # Not round(), which takes halves to even cells.
    return ((coords - coords.amin(0)) / side + 0.5).floor()


def _commonest(gaps: Tensor) -> tuple[float, int]:
    """The commonest gap, the smaller one in a tie, and how often it occurs; 1 without any.

    Nearly equal gaps are rounded multiples of one side, which is their mean.
    """
    if len(gaps) == 0:
        return 1.0, 0
    values, counts = torch.unique(gaps, return_counts=True)
    commonest = values[counts.argmax()]
    near = gaps[(gaps - commonest).abs() <= _ROUNDING * commonest]
    return float(near.mean()), len(near)


def _gaps(coords: Tensor) -> Tensor:
    """From every token [n, 2] to the next of the same row, where there is one."""
    by_column = coords[coords[:, 0].argsort()]
    by_row = by_column[by_column[:, 1].argsort(stable=True)]
    right, down = by_row.diff(dim=0).unbind(1)
    return right[(down == 0) & (right > 0)]
