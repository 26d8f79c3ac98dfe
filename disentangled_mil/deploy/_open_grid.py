"""A grid whose size is a number in an exported program, where other grids have constants."""

import torch
from torch import Tensor

from .._torch_private import side_of
from ..bags import Grid


class OpenGrid(Grid, parts=("cells", "mask", "count", "sizes"), constants=("shapes", "full")):
    """A grid that is made of coordinates inside of a program; its canvas is as large as the widest and highest bag.

    It has one entry in ``shapes``, that of the canvas, and searches the nearest tissue where a layer asks for it.
    """

    only_canvas = True

    @classmethod
    def of(cls, coords: Tensor, mask: Tensor, step: Tensor) -> "OpenGrid":
        """Lay tokens out as :meth:`Grid.from_coords` does.

        Args:
            coords: (x, y) of every token.
            mask: mask of the tokens (True = real token).
            step: side of a cell, bag by bag.

        Shape:
            ``coords`` [B, N, 2] float64, ``mask`` [B, N], ``step`` [B] float64.

        Returns:
            The grid.
        """
        real = mask[..., None]
        low = torch.where(real, coords, torch.inf).amin(1, keepdim=True)
        cells = torch.where(real, ((coords - low) / step[:, None, None] + 0.5).floor(), 0).long()
        sizes = cells.amax(1) + 1  # [B, 2]
        width, height = (side_of(sizes[:, axis].amax(0)) for axis in (0, 1))
        flat = torch.where(mask, cells[..., 1] * width + cells[..., 0], width * height)
        count = torch.zeros(coords.shape[0], width * height + 1).scatter_add(1, flat, mask.float())[:, : width * height]
        return cls._of((cells, mask, count, sizes), (((width, height),), False))

    def expand(self, batch: int) -> "OpenGrid":
        """The grid itself, which has a row for every bag."""
        return self

    def nearest_tissue(self, cell: Tensor) -> Tensor:
        """Search the occupied cell nearest to each of some cells; see the base."""
        width, height = self.width, self.height
        above, below = self._occupied_rows()  # [B, H, W]
        flat = cell.reshape(self.mask.shape[0], -1)  # [B, L]
        y = (flat // width)[..., None]
        x = flat[..., None] - y * width
        row = (y * width + torch.arange(width)).flatten(1)  # the cells of row y [B, L W]
        up, down = (torch.unflatten(part.flatten(1).gather(1, row), 1, (-1, width)) for part in (above, below))
        # In every column the nearest row is known, so one search over the columns is left.
        to_up, to_down = y - up, down - y
        nearest = torch.where(to_up <= to_down, up, down)  # [B, L, W]
        squares = torch.minimum(to_up, to_down) ** 2 + (x - torch.arange(width)) ** 2
        column = squares.argmin(2, keepdim=True)
        found = nearest.gather(2, column).clamp(0, height - 1) * width + column
        return found.reshape(cell.shape)

    def _occupied_rows(self) -> tuple[Tensor, Tensor]:
        """For every cell [B, H, W], the nearest occupied row at or above it, and at or below; a far one if none is."""
        width, height = self.width, self.height
        far = 2 * (width + height)
        occupied = (self.count > 0).view(-1, height, width)
        seen = occupied.long().cumsum(1)
        row = torch.arange(height)[:, None].expand_as(seen)
        # Entry k of a column is its k-th occupied row.
        listed = torch.full((seen.shape[0], height + 2, width), far).scatter(1, torch.where(occupied, seen, 0), row)
        above = torch.where(seen > 0, listed.gather(1, seen), -far)
        return above, listed.gather(1, seen - occupied.long() + 1)
