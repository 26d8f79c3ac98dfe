"""From the coordinates of a bag's tokens to cells of a lattice.

If the side of a cell is not given, rule 1 gives it. Rule 2 replaces it if rule 1 fails. Rule 3 compares gaps.

1. The side is the most common gap between neighbors in a row or column, because each piece of tissue may have its own
   lattice. The tokens of a row must have equal coordinates y, and those of a column equal x.
2. Rule 1 fails if few tokens have such a neighbor, or if distinct coordinates would share cells (staggered rows). The
   side is then a gap between columns or rows of the whole bag: the smallest that is at least half as common as the most
   common one. If less than half of many gaps equal it, or if tokens of most columns lie off them, the coordinates are
   refused.
3. Gaps within 1% of each other are one gap, whose size is their mean. A lattice of a fractional side has such gaps if
   its coordinates are rounded, and its rows stay equal. If tokens lie off their rows, the side must be given.
"""

import warnings

import torch
from torch import Tensor

from .._checks import check_shape

# Rule 1 holds if this share of the tokens has the most common gap, and distinct coordinates have this share of cells.
_LEAST_SHARE = 0.9
# Rule 2 holds if this share of the gaps equals the side. It is tested if there are more gaps than the second number.
_LEAST_AGREEMENT, _MANY_GAPS = 0.5, 64
# Rule 3: gaps are equal if their relative difference is at most this number.
_ROUNDING = 0.01

# What is refused: more cells than 200 (n + 80) for n tokens, which a wrong side or jittered coordinates cause,
_CELLS_PER_TOKEN, _MORE_TOKENS = 200, 80
# and more distinct coordinates than this in a bag that is smaller than one cell, which a side in a wrong unit causes.
_MOST_IN_ONE_CELL = 128
# A bag without a mask gets a warning if more tokens than this at its end have one coordinate, as padding has.
_MOST_REPEATED = 4


def cells_of_bag(coords: Tensor, step: float | None) -> tuple[Tensor, tuple[int, int]]:
    """Cells [n, 2] of the real tokens of one bag, and the (width, height) that they span."""
    if len(coords) == 0:
        return coords.long(), (1, 1)
    if not torch.isfinite(coords).all():
        raise ValueError("coords must be finite where mask is True, got NaN or infinity")
    side = (lattice_step(coords) or 1.0) if step is None else step
    cells = _cells_of(coords, side)
    extent = cells.amax(0) + 1
    if extent.prod() > _CELLS_PER_TOKEN * (len(coords) + _MORE_TOKENS):
        raise ValueError(
            f"coords must lie on a grid: {len(coords)} tokens would span {extent[0]:.0f} x {extent[1]:.0f} cells "
            f"of side {side:g}; give the patch size as step, or leave out tokens that lie far from the others"
        )
    if (coords.amax(0) - coords.amin(0) < side).all() and (
        distinct := len(torch.unique(coords, dim=0))
    ) > _MOST_IN_ONE_CELL:
        raise ValueError(
            f"step must be the side of a cell in the unit of coords, got {side:g}: {distinct} different coordinates "
            f"would share {extent[0]:.0f} x {extent[1]:.0f} cells"
        )
    width, height = (int(size) for size in extent)
    return cells.long(), (width, height)


def warn_of_padding(coords: Tensor) -> None:
    """Warn if the last tokens of a bag lie on one place, as padding does that no mask marks."""
    if len(coords) <= _MOST_REPEATED or bool((coords[-_MOST_REPEATED - 1 :] != coords[-1]).any()):
        return
    others = (coords != coords[-1]).any(1).nonzero()
    repeated = len(coords) - (int(others[-1]) + 1 if len(others) else 0)
    words = (
        f"the last {repeated} of {len(coords)} tokens on one place; mark them in the mask, or leave them out, if they "
        "are padding"
        if len(others)
        else f"all {len(coords)} tokens on one place; leave them out if places are not known"
    )
    warnings.warn(f"coords put {words}", stacklevel=3)


def lattice_step(coords: Tensor) -> float | None:
    """The side of a cell that the coordinates of a bag show, by the rules at the top.

    Args:
        coords: (x, y) of every token.

    Shape:
        ``coords`` [N, 2].

    Returns:
        The side in the unit of the coordinates; None where all tokens lie on one place.

    Raises:
        TypeError: ``coords`` is no tensor.
        ValueError: the coordinates show no lattice, or have another shape.

    Example:
        >>> import torch
        >>> from disentangled_mil.bags import lattice_step
        >>> lattice_step(torch.tensor([[0, 0], [448, 0], [1344, 0], [0, 448]]))
        448.0
    """
    check_shape("coords", coords, "N 2")
    coords = coords.double()
    neighbors = torch.cat([_gaps_to_neighbors(coords), _gaps_to_neighbors(coords.flip(1))])
    if len(neighbors):
        gaps, counts = _count(neighbors)
        side, count = _mean_near(neighbors, gaps[counts.argmax()]), int(counts.max())
        cells, distinct = (len(torch.unique(points, dim=0)) for points in (_cells_of(coords, side), coords))
        if count >= _LEAST_SHARE * len(coords) and cells >= _LEAST_SHARE * distinct:
            return side
    columns_and_rows = [torch.unique(coords[:, axis]) for axis in (0, 1)]
    gaps_of_axes = torch.cat([values.diff() for values in columns_and_rows])
    if len(gaps_of_axes) == 0:
        return None
    gaps, counts = _count(gaps_of_axes)
    gap = gaps[2 * counts >= counts.max()][0]  # The smallest that is at least half as common as the most common one.
    gaps_of_axes = gaps_of_axes[gaps_of_axes > _ROUNDING * gap]
    equal = (gaps_of_axes - gap).abs() <= _ROUNDING * gap
    # Rounding moves tokens to both sides of their column, so tokens lie off a column that is wider than two roundings.
    wide = torch.cat([_widths(values, _ROUNDING * gap) > 2 * _ROUNDING * gap for values in columns_and_rows])
    few_agree = len(equal) > _MANY_GAPS and equal.sum() < _LEAST_AGREEMENT * len(equal)
    most_are_wide = 2 * wide.sum() > len(wide)
    if few_agree or most_are_wide:
        raise ValueError(
            f"coords must lie on a grid: {equal.sum()} of {len(equal)} gaps between columns or rows agree, and tokens "
            f"of {wide.sum()} of {len(wide)} lie off them; give the patch size as step"
        )
    return float(gaps_of_axes[equal].mean())


def _cells_of(coords: Tensor, side: float) -> Tensor:
    """Column and row of every token [n, 2], still floating-point."""
    # Not round(), which takes halves to even cells.
    return ((coords - coords.amin(0)) / side + 0.5).floor()


def _gaps_to_neighbors(coords: Tensor) -> Tensor:
    """The gap from every token [n, 2] to the next one of the same row, if there is one."""
    by_column = coords[coords[:, 0].argsort()]
    by_row = by_column[by_column[:, 1].argsort(stable=True)]
    right, down = by_row.diff(dim=0).unbind(1)
    same_row = down == 0
    return right[same_row & (right > 0)]


def _widths(values: Tensor, apart: Tensor) -> Tensor:
    """The extent of every cluster of sorted coordinates; a gap above ``apart`` separates clusters."""
    # The value before the first one is far enough away for a cluster to begin.
    first = values.diff(prepend=values[:1] - 2 * apart) > apart
    last = torch.cat([first[1:], first.new_ones(1)])
    return values[last] - values[first]


def _count(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct gaps, ascending, and the number of gaps that equal each but for rounding."""
    ordered = gaps.sort().values
    values = torch.unique(ordered)
    above = torch.searchsorted(ordered, values * (1 + _ROUNDING), right=True)
    return values, above - torch.searchsorted(ordered, values * (1 - _ROUNDING))


def _mean_near(gaps: Tensor, gap: Tensor) -> float:
    """The mean of the gaps that equal one but for rounding."""
    return float(gaps[(gaps - gap).abs() <= _ROUNDING * gap].mean())
