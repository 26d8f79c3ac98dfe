"""Reference points: where a deformable layer would sample context without offsets."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..bags import Grid


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


def coarse_sizes(grid: Grid, downsample: int, least: int) -> tuple[Tensor, int]:
    """The coarse grid of every bag: one point per ``downsample`` cells, and per cell of short axes.

    Args:
        grid: where the queries lie.
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


def points_of(grid: Grid, size: Tensor, count: int, pitch: Tensor, kernel_size: int) -> ReferencePoints:
    """All points of coarse grids, with windows around the cells that each point stands for.

    Args:
        grid: where the queries lie.
        size: (columns, rows) of the coarse grid of every bag [B, 2].
        count: number of points J; the bags' own come first.
        pitch: cells from one point to the next along each axis [B, 2].
        kernel_size: side S of the windows in cells.

    Returns:
        The reference points.
    """
    index = torch.arange(count, device=size.device)
    columns = size[:, :1]
    position = torch.stack([index % columns, index // columns], dim=-1)  # [B, J, 2]
    window = windows_at((position + 0.5) * pitch[:, None] - 0.5, grid, kernel_size)
    return ReferencePoints(position, window, index < size.prod(1, keepdim=True), size)


def windows_at(center: Tensor, grid: Grid, kernel_size: int) -> Tensor:
    """Flat indices of the canvas cells around centers [B, J, 2] in cells: [B, J, S, S]; H * W for cells outside."""
    start = (center - (kernel_size - 1) / 2 + 0.5).floor().long()  # [B, J, 2]
    span = torch.arange(kernel_size, device=start.device)
    x, y = start[..., 0, None] + span, start[..., 1, None] + span  # [B, J, S]
    inside_x, inside_y = ((c >= 0) & (c < grid.sizes[:, i, None, None]) for i, c in enumerate((x, y)))
    cell = y[..., :, None] * grid.width + x[..., None, :]
    inside = inside_y[..., :, None] & inside_x[..., None, :]
    return torch.where(inside, cell, grid.width * grid.height)
