"""Conventions of positions: where a deformable layer has its reference points and how it reads context there.

A layer knows positions in three units. Coarse cells count reference points, cells count tokens of the grid, and
normalized positions span the rectangle of a bag. A convention says how these are related, which cells a position reads,
and with which weights. Attention mass goes back to the cells that were read.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..bags import Grid
from ..ops import Corners
from .reference_points import ReferencePoints, even_points
from .tissue import tissue_corners


class Place(NamedTuple):
    """The same positions in two units.

    Attributes:
        normalized: positions over the rectangle of the context, as the position bias reads them [B, G, J, 2].
        cells: positions in cells of the context grid, where context is sampled [B, G, J, 2].
    """

    normalized: Tensor
    cells: Tensor


class Positions(ABC):
    """A convention of positions, which :class:`~disentangled_mil.DeformableCrossAttention` is given as an object."""

    @abstractmethod
    def check_options(self, *, bias: str, max_keys: int | None) -> None:
        """Refuse options of the layer that the convention does not allow.

        Args:
            bias: kind of the position bias, ``"table"`` or ``"exact"``.
            max_keys: cap on the sampled keys, or None.

        Raises:
            ValueError: an option does not fit.
        """

    def check_sets(self) -> None:  # noqa: B027  (most conventions say nothing about sets)
        """Refuse bags without coordinates, if the convention knows grids only.

        Raises:
            ValueError: the convention needs grids.
        """

    @abstractmethod
    def reference_points(self, grid: Grid, downsample: int, kernel_size: int, max_keys: int | None) -> ReferencePoints:
        """Reference points over the queries.

        Args:
            grid: grid of the queries.
            downsample: cells per reference point along each axis.
            kernel_size: side of the window of the offset network, in cells.
            max_keys: largest number of points of a thinned bag; None if no bag is thinned.

        Returns:
            The points and their windows.

        Raises:
            ValueError: the convention does not know such a grid.
        """

    @abstractmethod
    def normalize(self, position: Tensor, size: Tensor) -> Tensor:
        """Normalize positions.

        Args:
            position: (x, y) in cells of a grid [..., 2].
            size: (width, height) of the grid in cells, to be broadcast.

        Returns:
            Positions [..., 2] in [-1, 1] for cells of the grid.
        """

    @abstractmethod
    def place(self, normalized: Tensor, grid: Grid) -> Place:
        """Find normalized positions on the context grid.

        Args:
            normalized: positions [B, G, J, 2], which offsets may have moved out of [-1, 1].
            grid: grid of the context.

        Returns:
            Where context is sampled, normalized and in cells.

        Raises:
            ValueError: the convention does not know such a grid.
        """

    @abstractmethod
    def corners(self, grid: Grid, cells: Tensor) -> tuple[Corners, Tensor]:
        """The cells that positions read, and on which their attention mass is spread.

        Args:
            grid: grid of the context.
            cells: positions in cells of the grid [B, G, J, 2].

        Returns:
            Cells and weights [B * G, J, 4], and the share of tissue under each position [B * G, J].
        """


@dataclass(frozen=True)
class CellCenters(Positions):
    """Positions are measured from cell centers, and only tissue is read: right for any rectangle with holes.

    The rectangle of a bag, edges included, spans [-1, 1]. Reference points are spread evenly over it. Positions are
    kept on it, and a sample is the mean of the real cells around its position.

    Example:
        >>> import torch
        >>> from disentangled_mil.nn import CellCenters
        >>> CellCenters().normalize(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([4, 2])).tolist()
        [[-0.75, -0.5], [0.75, 0.5]]
    """

    def check_options(self, *, bias: str, max_keys: int | None) -> None:
        """Accept all options."""

    def reference_points(self, grid: Grid, downsample: int, kernel_size: int, max_keys: int | None) -> ReferencePoints:
        """One point per ``downsample`` cells, fewer where they would be too many; see the base."""
        return even_points(grid, downsample, kernel_size, max_keys)

    def normalize(self, position: Tensor, size: Tensor) -> Tensor:
        """Normalize positions to the edges of the rectangle; see the base."""
        return (2 * position + 1) / size - 1

    def place(self, normalized: Tensor, grid: Grid) -> Place:
        """Keep positions between the centers of the outermost cells; see the base."""
        size = grid.sizes[:, None, None]
        cells = torch.minimum((((normalized + 1) * size - 1) / 2).clamp(min=0), size - 1)
        return Place(self.normalize(cells, size), cells)

    def corners(self, grid: Grid, cells: Tensor) -> tuple[Corners, Tensor]:
        """The occupied cells around each position, or the nearest one; see the base."""
        return tissue_corners(grid, cells)
