"""Reference points: where a deformable layer would sample context without offsets.

Without a cap, every bag has one point per r x r cells of its rectangle, r = ``downsample``: N / r^2 keys for N tokens,
and attention costs N^2 / r^2. A cap makes the cost linear in N for large bags. Points in holes cost little, because
their keys rarely take part, so the cap counts tissue and not the rectangle:

* A bag is left as it is if its number of points times the share of its cells with tissue is at most ``max_keys``, and
  its rectangle has at most 4 ``max_keys`` points.
* Of any other bag, only points count whose block of cells holds tissue. The pitch of the points grows by one factor for
  both axes, the smallest of a bisection at which at most ``max_keys`` points count.

Each bag is treated by itself. Shapes of tensors depend on the sides of the rectangles and on ``max_keys`` alone, so
that a compiled or exported program serves any tissue.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..bags import Grid

# Points of a rectangle that is not yet thinned, for every key of the cap: tissue may fill a quarter of it.
_SPARSE = 4
# Halvings of the logarithm of the factor: the pitch is met to about 1 %.
_BISECTIONS = 8


class ReferencePoints(NamedTuple):
    """The reference points over the bags of a grid, row by row on each bag's own coarse grid.

    Attributes:
        position: column and row on the coarse grid of the bag [B, J, 2].
        window: flat indices of the canvas cells that the offset network reads [B, J, S, S]; the index behind the last
            cell stands for "outside".
        mask: True where the bag has that reference point [B, J].
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
        downsample: cells per reference point along each axis; an axis of fewer cells than the kernel has one per cell.
        kernel_size: side S of the windows in cells.
        max_keys: largest number of points over tissue; None for any number.

    Returns:
        The points, with windows around the middle of the cells that each point stands for.
    """
    size, count = coarse_sizes(grid, downsample, least=kernel_size)
    index = torch.arange(count, device=size.device)
    if max_keys is None or count <= max_keys:
        return points_at(index[None], index < size.prod(1, keepdim=True), grid, size, grid.sizes / size, kernel_size)
    points, tissue = size.prod(1), (grid.count > 0).sum(1)
    large = (points * tissue > max_keys * grid.sizes.prod(1)) | (points > _SPARSE * max_keys)
    size = torch.where(large[:, None], _thinned(grid, size, count, max_keys), size)
    kept = (index < size.prod(1, keepdim=True)) & (_over_tissue(grid, size, count) | ~large[:, None])
    # Bags that fill one rectangle are all thinned.
    most = max_keys if grid.full else min(count, _SPARSE * max_keys)
    # CUDA sorts no bool in every supported version.
    kept, index = (part[:, :most] for part in kept.to(torch.uint8).sort(dim=1, descending=True, stable=True))
    return points_at(index, kept.bool(), grid, size, grid.sizes / size, kernel_size)


def coarse_sizes(grid: Grid, downsample: int, least: int) -> tuple[Tensor, int]:
    """The coarse grid of every bag: one point per ``downsample`` cells, and per cell of short axes.

    Args:
        grid: grid of the queries.
        downsample: cells per reference point along each axis.
        least: fewest cells of an axis that is sampled coarsely.

    Returns:
        (columns, rows) of every bag [B, 2], and the largest number of points that a bag has.
    """
    stride = torch.where(grid.sizes >= least, downsample, 1)
    size = torch.div(grid.sizes, stride, rounding_mode="floor")
    # In numbers, because a choice would be a graph of its own for each side of every bag.
    columns, rows = (
        [side + min(side // least, 1) * (side // downsample - side) for side in axis]
        for axis in zip(*grid.shapes, strict=True)
    )
    return size, max(c * r for c, r in zip(columns, rows, strict=True))


def points_at(
    index: Tensor, mask: Tensor, grid: Grid, size: Tensor, pitch: Tensor, kernel_size: int
) -> ReferencePoints:
    """Points of coarse grids, with windows around the middle of the cells that each point stands for.

    Args:
        index: points, counted row by row on the coarse grid of their bag [B, J], or [1, J] for all bags.
        mask: True where the bag has that point [B, J].
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
    low, high = torch.ones_like(enough), enough
    for _ in range(_BISECTIONS):
        middle = (low * high).sqrt()
        enough = fits(divided(middle))
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(fits(size)[:, None], size, divided(high))


def _over_tissue(grid: Grid, size: Tensor, count: int) -> Tensor:
    """Which of ``count`` points on coarse grids [B, 2] have tissue in the block of cells that they stand for."""
    # Of the middles of cells, in whole numbers.
    block = (2 * grid.cells + 1) * size[:, None] // (2 * grid.sizes[:, None])
    index = torch.where(grid.mask, block[..., 1] * size[:, :1] + block[..., 0], count)
    return torch.zeros(len(size), count + 1, dtype=torch.bool, device=size.device).scatter(1, index, True)[:, :count]
