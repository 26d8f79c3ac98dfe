"""The released convention of positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...bags import Grid
from ...nn.positions import Place, Positions
from ...nn.reference_points import ReferencePoints, coarse_sizes, points_at
from ...ops import Corners, bilinear_corners


@dataclass(frozen=True)
class ReleasedPositions(Positions):
    """Positions as the released models measure them; right for grids only that every bag fills row by row.

    The centers of the outermost cells span [-1, 1], but context is sampled as if the edges did. Samples outside of the
    map read zeros, and their attention mass is lost. Reference points are those of a convolution with padding.

    Source:
        The released implementation, as facts in its golden numbers.

    Example:
        >>> import torch
        >>> from disentangled_mil.models.released import ReleasedPositions
        >>> ReleasedPositions().normalize(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([4, 2])).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    def check_options(self, *, bias: str, max_keys: int | None) -> None:
        """Refuse a table of the bias, which spans positions inside of the map, and a cap on keys; see the base."""
        if bias != "exact":
            raise ValueError(f"bias must be 'exact' for {self!r}, which may sample outside of the map, got {bias!r}")
        if max_keys is not None:
            raise ValueError(f"max_keys must be None for {self!r}, which has a fixed number of keys, got {max_keys}")

    def check_sets(self) -> None:
        """Refuse sets; see the base."""
        raise ValueError(f"{self!r} needs grids that every bag fills row by row (Grid.square), got a set")

    def reference_points(self, grid: Grid, downsample: int, kernel_size: int, max_keys: int | None) -> ReferencePoints:
        """The windows of a convolution of stride ``downsample``, which may leave out the last cells; see the base."""
        _check_full(grid)
        # The convolution pads, so that a side of ``downsample`` is enough for one window.
        size, count = coarse_sizes(grid, downsample, least=downsample)
        pitch = torch.where(grid.sizes >= downsample, downsample, 1)
        index = torch.arange(count, device=size.device)[None]
        return points_at(index, index < size.prod(1, keepdim=True), grid, size, pitch, kernel_size)

    def normalize(self, position: Tensor, size: Tensor) -> Tensor:
        """Normalize positions to the centers of the outermost cells; see the base."""
        return 2 * position / (size - 1).clamp(min=1) - 1

    def place(self, normalized: Tensor, grid: Grid) -> Place:
        """Read normalized positions as if they spanned the edges, wherever that is; see the base."""
        _check_full(grid)
        return Place(normalized, ((normalized + 1) * grid.sizes[:, None, None] - 1) / 2)

    def corners(self, grid: Grid, cells: Tensor) -> tuple[Corners, Tensor]:
        """The four cells around each position; cells outside of the map weigh nothing; see the base."""
        position = cells.flatten(0, 1)
        return bilinear_corners(position, grid.width, grid.height), position.new_ones(position.shape[:2])


def _check_full(grid: Grid) -> None:
    if not grid.full:
        raise ValueError(f"{ReleasedPositions()!r} needs grids that every bag fills row by row, without padding")
