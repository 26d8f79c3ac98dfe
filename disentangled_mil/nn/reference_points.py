"""Reference points: where a deformable layer would sample context without offsets.

Without a cap, every bag has one point per r x r cells of its rectangle, where r is ``downsample``. A full rectangle of
N tokens has N / r^2 keys, and attention costs N^2 / r^2. A cap makes the cost linear in N for large bags. Points in
holes cost little, because their keys rarely take part, so the cap counts tissue and not the rectangle:

* A bag is left as it is under two conditions. Its number of points times the share of its cells with tissue is at most
  ``max_keys``, and its rectangle has at most 4 ``max_keys`` points. Scattered tissue may then lie under more than
  ``max_keys`` points.
* Any other bag is thinned. It keeps only points whose block of cells holds tissue. The pitch of the points grows by one
  factor for both axes, which a bisection finds, so that at most ``max_keys`` points are kept.

A thinned bag has at most ``max_keys`` points, and other bags have at most four times as many. Each bag is treated by
itself. Shapes of tensors depend on the sides of the rectangles and on ``max_keys`` alone, so that a compiled or
exported program serves any tissue.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count
from .._torch_private import larger, smaller
from ..bags import Grid

# A rectangle that is not thinned has at most this many points for every key of the cap, as tissue may be sparse.
_SPARSE = 4
# Each step halves the logarithm of the factor, so that its relative error is ln(largest factor) / 2^8.
_BISECTIONS = 8


class ReferencePoints(NamedTuple):
    """The reference points over the bags of a grid, row by row on each bag's own coarse grid.

    Attributes:
        position: column and row on the coarse grid of the bag [B, J, 2].
        window: flat indices of the canvas cells that the offset network reads [B, J, S, S]; the index behind the last
            cell stands for "outside".
        mask: mask of the reference points that a bag has [B, J].
        size: (columns, rows) of the coarse grid of the bag [B, 2].
    """

    position: Tensor
    window: Tensor
    mask: Tensor
    size: Tensor


def even_points(grid: Grid, downsample: int, kernel_size: int, max_keys: int | None) -> ReferencePoints:
    """Reference points that are spread evenly over the rectangle of every bag.

    Args:
        grid: grid of the queries.
        downsample: cells per reference point along each axis. An axis of fewer cells than the kernel has one per cell.
        kernel_size: side S of the windows in cells, at least ``downsample``.
        max_keys: largest number of points of a thinned bag, and a quarter of that of any other; None for any number.

    Returns:
        The points, with windows around the middle of the cells that each point stands for.

    Raises:
        ValueError: ``kernel_size`` is less than ``downsample``.
    """
    check_count("kernel_size", kernel_size, downsample)
    size, count = coarse_sizes(grid, downsample, least=kernel_size)
    index = torch.arange(count, device=size.device)
    # An exporter's sizes are no integers: there is one program for few points and many.
    if max_keys is None or (isinstance(count, int) and count <= max_keys):
        return points_at(index[None], index < size.prod(1, keepdim=True), grid, size, grid.sizes / size, kernel_size)
    points, tissue = size.prod(1), (grid.count > 0).sum(1)
    large = (points * tissue > max_keys * grid.sizes.prod(1)) | (points > _SPARSE * max_keys)
    size = torch.where(large[:, None], _thinned(grid, size, count, max_keys), size)
    kept = (index < size.prod(1, keepdim=True)) & (_over_tissue(grid, size, count) | ~large[:, None])
    # If every bag fills the whole canvas, all are thinned, so max_keys columns suffice.
    most = max_keys if grid.full else smaller(count, _SPARSE * max_keys)
    # CUDA sorts no bool in every supported version.
    kept, index = (part[:, :most] for part in kept.to(torch.uint8).sort(dim=1, descending=True, stable=True))
    return points_at(index, kept.bool(), grid, size, grid.sizes / size, kernel_size)


def coarse_sizes(grid: Grid, downsample: int, least: int) -> tuple[Tensor, int]:
    """The coarse grid of every bag. A long axis has one point per ``downsample`` cells, a short axis one per cell.

    Args:
        grid: grid of the queries.
        downsample: cells per reference point along each long axis.
        least: fewest cells of a long axis, at least ``downsample``, so that every axis has a point.

    Returns:
        (columns, rows) of every bag [B, 2], and the largest number of points that a bag has.
    """

    def points(side: Any, is_long: Any) -> Any:
        # Arithmetic avoids a branch, which would compile a graph for every side.
        return side + is_long * (side // downsample - side)

    def points_of_side(side: Any) -> Any:
        own = points(side, smaller(side // least, 1))
        # A bag of a shorter side may have more points, if each of its cells has one.
        return larger(own, smaller(side, least - 1)) if grid.only_canvas else own

    size = points(grid.sizes, (grid.sizes >= least).long())
    each = [points_of_side(width) * points_of_side(height) for width, height in grid.shapes]
    return size, max(each) if len(each) > 1 else each[0]


def points_at(
    index: Tensor, mask: Tensor, grid: Grid, size: Tensor, pitch: Tensor, kernel_size: int
) -> ReferencePoints:
    """Points of coarse grids, with windows around the middle of the cells that each point stands for.

    Args:
        index: points, counted row by row on the coarse grid of their bag [B, J], or [1, J] for all bags.
        mask: mask of the points that a bag has [B, J].
        grid: grid of the queries.
        size: (columns, rows) of the coarse grid of every bag [B, 2].
        pitch: cells from one point to the next along each axis [B, 2].
        kernel_size: side S of the windows in cells.

    Returns:
        The reference points.
    """
    columns = size[:, :1]
    position = torch.stack([index % columns, index // columns], dim=-1)  # [B, J, 2]
    center = (position + 0.5) * pitch[:, None] - 0.5
    start = (center - (kernel_size - 1) / 2 + 0.5).floor().long()
    span = torch.arange(kernel_size, device=start.device)
    x, y = start[..., 0, None] + span, start[..., 1, None] + span  # [B, J, S]
    inside_x, inside_y = ((c >= 0) & (c < grid.sizes[:, i, None, None]) for i, c in enumerate((x, y)))
    cell = y[..., :, None] * grid.width + x[..., None, :]
    inside = inside_y[..., :, None] & inside_x[..., None, :]
    window = torch.where(inside, cell, grid.width * grid.height)
    return ReferencePoints(position, window, mask, size)


def _thinned(grid: Grid, size: Tensor, count: int, max_keys: int) -> Tensor:
    """Coarse grids [B, 2] of at most ``size``, with at most ``max_keys`` points over tissue."""

    def divided(factor: Tensor) -> Tensor:
        return (size / factor[:, None]).floor().clamp(min=1).long()

    def fits(smaller: Tensor) -> Tensor:
        return _over_tissue(grid, smaller, count).sum(1) <= max_keys

    columns, rows = size.double().unbind(1)
    # At this factor the whole rectangle fits, even along an axis of a single point.
    enough = torch.stack([(columns * rows / max_keys).sqrt(), columns / max_keys, rows / max_keys]).amax(0).clamp(min=1)
    # More points may be over tissue at a larger factor, but at every value of ``high`` few enough are.
    low, high = torch.ones_like(enough), enough
    for _ in range(_BISECTIONS):
        middle = (low * high).sqrt()
        fitting = fits(divided(middle))
        low, high = torch.where(fitting, low, middle), torch.where(fitting, middle, high)
    return torch.where(fits(size)[:, None], size, divided(high))


def _over_tissue(grid: Grid, size: Tensor, count: int) -> Tensor:
    """Which of ``count`` points on coarse grids [B, 2] have tissue in the block of cells that they stand for."""
    # Each cell belongs to the block that holds its middle; integers keep this exact.
    block = (2 * grid.cells + 1) * size[:, None] // (2 * grid.sizes[:, None])
    index = torch.where(grid.mask, block[..., 1] * size[:, :1] + block[..., 0], count)
    covered = torch.zeros(size.shape[0], count + 1, dtype=torch.bool, device=size.device)
    return covered.scatter(1, index, True)[:, :count]
