"""A position bias that is a table of values, interpolated bilinearly."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..._checks import check_callable, check_count, check_interval
from ..._torch_private import grid_sample_backward
from ._tiled import BiasWanted, position_gradients

LARGEST_REACH = 1e6


class BiasTable(NamedTuple):
    """Bias of a displacement, read from a table of its values and interpolated bilinearly.

    Column c stands for the displacement ``x = reach (2 c / (R - 1) - 1)``, and rows stand for y in the same way.
    Displacements outside are moved to the edge, and have no gradient there. The gradient of a bias flows to the values
    of the table, and from there to what they were computed from.

    Shape:
        ``values`` [I, R, R], ``reach`` a number; displacements [..., 2] -> [..., I].
    """

    values: Tensor
    reach: float = 2.0

    @classmethod
    def of(
        cls,
        bias: Callable[[Tensor], Tensor],
        *,
        resolution: int = 129,
        reach: float = 2.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "BiasTable":
        """The table of any function of the displacement.

        Args:
            bias: function of displacements [..., 2] -> [..., I].
            resolution: number R of nodes along each side.
            reach: largest displacement; 2 spans all pairs of positions in [-1, 1].
            dtype: type of the nodes.
            device: device of the nodes.

        Returns:
            The table, whose values have the gradient of ``bias``.

        Raises:
            TypeError: ``resolution`` is no integer.
            ValueError: ``resolution`` is less than 2, or ``reach`` is not positive.

        Example:
            >>> import torch
            >>> from disentangled_mil.ops import BiasTable
            >>> table = BiasTable.of(lambda d: d.sum(-1, keepdim=True), resolution=5)
            >>> table(torch.tensor([0.25, -1.0]))
            tensor([-0.7500])
        """
        check_callable("bias", bias)
        check_count("resolution", resolution, 2)
        check_interval("reach", reach, 0, LARGEST_REACH, open_low=True)
        node = torch.linspace(-reach, reach, resolution, dtype=dtype, device=device)
        y, x = torch.meshgrid(node, node, indexing="ij")
        return cls(bias(torch.stack([x, y], dim=-1)).movedim(-1, 0).to(dtype), reach)

    def __call__(self, displacement: Tensor) -> Tensor:
        """Bias of each displacement [..., 2] -> [..., I]."""
        coordinate = (displacement.to(self.values.dtype) / self.reach).reshape(1, 1, -1, 2)
        # grid_sample at NaN may read anywhere in memory.
        known = coordinate.nan_to_num(0, posinf=2, neginf=-2)
        read: Tensor = grid_sample(self.values[None], known, align_corners=True, padding_mode="border")
        read = read.masked_fill(coordinate.isnan().any(-1)[:, None], torch.nan)
        bias: Tensor = read[0, :, 0].T.reshape(*displacement.shape[:-1], len(self.values))
        return bias

    def error_bound(self, lipschitz_constant: Tensor) -> Tensor:
        """Largest error of the table within its reach: Lipschitz constant x pitch / sqrt(2).

        A read value is a mean of four corners, and no corner differs from the function by more than its distance
        times the Lipschitz constant. For a smooth function or a network the error is usually far smaller.

        Args:
            lipschitz_constant: Lipschitz constant of the function, such as :meth:`MLPBias.lipschitz_constant`.

        Returns:
            The bound, of the shape of ``lipschitz_constant``.
        """
        pitch = 2 * self.reach / (self.values.shape[-1] - 1)
        return lipschitz_constant * pitch * 2**-0.5


class TiledTable:
    """A :class:`~._tiled.TiledBias` that reads a table."""

    most_pairs = torch.inf

    def __init__(self, table: BiasTable) -> None:
        self.table, self._grad_values = table, torch.zeros_like(table.values)

    def tile(self, queries: Tensor, keys: Tensor) -> "TableTile":
        """The biases between queries [t, 2] and keys [G, J, 2]."""
        # Infinite positions become finite ones beyond every table. The difference of two infinite ones would be NaN,
        # and grid_sample at NaN may read anywhere in memory. Complex numbers are subtracted faster than pairs.
        query, key = (
            torch.view_as_complex(position.clamp(-LARGEST_REACH, LARGEST_REACH) / self.table.reach)[:, None]
            for position in (queries, keys)
        )
        return TableTile(self, torch.view_as_real(query - key))

    def add(self, grad_values: Tensor) -> None:
        """Add a gradient of the values [I, R, R] to the sum."""
        self._grad_values += grad_values

    def gradient(self) -> BiasTable:
        """The sum of the gradients that all tiles have passed back."""
        return self.table._replace(values=self._grad_values)


class TableTile:
    """The biases of a table at coordinates [G, t, J, 2]: displacements in units of its reach."""

    def __init__(self, bias: TiledTable, coordinate: Tensor) -> None:
        self.bias, self.coordinate = bias, coordinate
        # Every group has a copy of the table, because PyTorch distributes copies over threads.
        self.tables = bias.table.values.expand(len(coordinate), -1, -1, -1)

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        return grid_sample(self.tables, self.coordinate, align_corners=True, padding_mode="border")

    def backward(self, gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the positions from that of the biases [G, I, t, J]."""
        grad_coordinate = self.backward_coordinate(
            gradient, want_bias=wanted.bias, want_coordinate=wanted.queries or wanted.keys
        )
        if grad_coordinate is None:
            return None, None
        queries, keys = position_gradients(grad_coordinate, wanted)
        reach = self.bias.table.reach
        return None if queries is None else queries / reach, None if keys is None else keys / reach

    def backward_coordinate(self, gradient: Tensor, *, want_bias: bool, want_coordinate: bool) -> Tensor | None:
        """The gradient of the coordinates [G, t, J, 2], if it is wanted; that of the table is added to its sum."""
        grad_tables, grad_coordinate = grid_sample_backward(
            gradient, self.tables, self.coordinate, wanted=(want_bias, want_coordinate)
        )
        if want_bias:
            self.bias.add(grad_tables.sum(0))
        return grad_coordinate if want_coordinate else None
