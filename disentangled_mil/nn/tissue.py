"""Sampling where there is tissue."""

import torch
from torch import Tensor

from ..bags import Grid
from ..ops import Corners, bilinear_corners


def tissue_corners(grid: Grid, position: Tensor) -> tuple[Corners, Tensor]:
    """The occupied cells around each position, with weights that sum to one.

    A position without tissue around it takes the nearest occupied cell.

    Args:
        grid: grid of the tokens.
        position: (x, y) in cells of the grid, inside of the canvas.

    Shape:
        ``position`` [B, G, J, 2].

    Returns:
        Corners [B * G, J, 4], and the share of tissue under each position [B * G, J] in [0, 1]. Shares below 1e-4
        count as 0. A bag without tokens has weights of zero.

    Example:
        >>> import torch
        >>> from disentangled_mil import Grid
        >>> grid = Grid.from_coords(torch.tensor([[0, 0], [3, 0]]), step=1)  # a hole of two cells
        >>> corners, share = tissue_corners(grid, torch.tensor([[[[0.75, 0.0], [1.9, 0.0]]]]))
        >>> share.tolist(), corners.cell[0, :, 0].tolist(), corners.weight[0, :, 0].tolist()
        ([[0.25, 0.0]], [0, 3], [1.0, 1.0])
    """
    groups = position.shape[1]
    position = position.flatten(0, 1)
    corners = bilinear_corners(position, grid.width, grid.height)
    if grid.full:
        return corners, position.new_ones(position.shape[:2])
    occupied = (grid.count > 0).to(position.dtype).repeat_interleave(groups, dim=0)  # [B G, H W]
    real = corners.weight * occupied.gather(1, corners.cell.flatten(1)).view_as(corners.weight)
    share = real.sum(-1)
    touches = share > _LEAST_TISSUE
    weight = real / torch.where(touches, share, 1)[..., None]

    x, y = position.detach().nan_to_num(0).round().unbind(-1)
    cell = y.long() * grid.width + x.long()
    nearest = grid.nearest_tissue(cell)
    alone = torch.zeros_like(weight)
    alone[..., 0] = occupied.gather(1, nearest)
    weight = torch.where(touches[..., None], weight, alone)
    cells = torch.where(touches[..., None], corners.cell, nearest[..., None])
    return Corners(cells, weight), torch.where(touches, share, 0)


# A smaller share of tissue counts as none, because the mean would be divided by nearly zero.
_LEAST_TISSUE = 1e-4
