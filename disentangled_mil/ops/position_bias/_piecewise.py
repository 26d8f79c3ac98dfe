"""The exact bias of a network on a CPU, read from a table wherever the network is affine.

It serves large attentions: nodes of the table and pairs in kinked cells must together take fewer evaluations of the
network than ``LARGEST_SHARE`` of all pairs. Values are those of the network up to rounding, at any displacement. The
table covers displacements between positions in [-1, 1]. Attention of 2,500 queries and 144 keys, forward and backward,
is 1.6 times as fast as with the network for every pair.

The network is affine in log-spaced displacements except where one of its 2 F hidden units changes its sign. Each pass
evaluates it at the nodes of a table of S x S cells, and the gradient does so once more. The first layer is affine. A
unit of it that has the same sign at all four corners of a cell therefore has that sign all over the cell. If all of its
units do, the second layer is affine in the cell too, and the same holds for its units. If those also keep their signs,
the network is affine in the cell: bilinear reading gives its values and slopes, and reading backwards gives its
gradients through the nodes. A sign counts only beyond a margin for rounding. All other cells, and those at the edge,
are called kinked: the network itself is evaluated for their pairs, and for pairs beyond the table.

Kinks cross about 2 F S cells. A node costs about two evaluations, one for the values and one for the gradient, so the
total of 2 S^2 + 2 F pairs / S evaluations is least at S^3 = F pairs / 2.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ._network import HiddenLayers, MLPBias, TiledNetwork, pairs_at_once
from ._table import BiasTable, TableTile, TiledTable
from ._tiled import BiasWanted, position_gradients

# Displacements that the table covers: those between positions in [-1, 1].
_REACH = 2.0
# Slopes are differences of rounded values, divided by the pitch. In a finer table of float32 their error grows.
_MOST_CELLS = 1024
# The table is left out if it costs more evaluations of the network than this share of the pairs.
LARGEST_SHARE = 3 / 8


def cells_for(pairs: int, features: int) -> int | None:
    """The number S of cells along a side of the table; None where the network should be evaluated for all pairs.

    Args:
        pairs: number of pairs in the whole batch, padded ones included.
        features: number F of units of a hidden layer.

    Returns:
        The number, or None.
    """
    cells = min(max(3, round((features * pairs / 2) ** (1 / 3))), _MOST_CELLS)
    evaluations = 2 * cells**2 + 2 * features * pairs / cells
    return cells if evaluations < LARGEST_SHARE * pairs else None


class TiledPiecewise:
    """A :class:`~._tiled.TiledBias` that reads a network from a table where it is affine.

    Args:
        network: network of the bias, on the CPU.
        cells: number S of cells along each side of the table, at least 3.
    """

    def __init__(self, network: MLPBias, cells: int) -> None:
        self.network, self.cells = TiledNetwork(network), cells
        # The inner cells cover the reach. Those at the edge catch all displacements beyond.
        self.side = math.log1p(_REACH) * cells / (cells - 2)
        self.nodes = torch.linspace(-self.side, self.side, cells + 1, dtype=network.w1.dtype, device="cpu")
        values = network.w1.new_empty(len(network.w3), cells + 1, cells + 1)
        self.kinked = torch.ones(cells, cells, dtype=torch.bool, device="cpu")
        for rows in self._stripes(shared=1):
            values[:, rows], signs = _values_and_signs(network, self._displacements(rows), self.side)
            of_two = signs[:, 1:] + signs[:, :-1]  # [2 F, r - 1, S + 1]
            of_corners = of_two[..., 1:] + of_two[..., :-1]  # [2 F, r - 1, S]
            self.kinked[rows.start : rows.stop - 1] = (of_corners.abs_() != 4).any(0)
        for edge in (self.kinked[0], self.kinked[-1], self.kinked[:, 0], self.kinked[:, -1]):
            edge.fill_(True)
        self.table = TiledTable(BiasTable(values, 1.0))

    @property
    def most_pairs(self) -> float:
        """The number of pairs in a tile; its kinked ones then fill about one tile of the network."""
        return self.network.most_pairs / self.kinked.float().mean().item()

    def tile(self, queries: Tensor, keys: Tensor) -> "PiecewiseTile":
        """The biases between queries [t, 2] and keys [G, J, 2]."""
        return PiecewiseTile(self, queries[:, None] - keys[:, None])

    def gradient(self) -> MLPBias:
        """The sum of the gradients that all tiles have passed back, also through the nodes of the table."""
        grad_values = self.table.gradient().values.movedim(0, -1)  # [S + 1, S + 1, I]
        # Each node passes its gradient back once, so these stripes share no rows.
        for rows in self._stripes(shared=0):
            layers = HiddenLayers(self.network.network, self._displacements(rows).view(-1, 2))
            self.network.add(layers, grad_values[rows].flatten(0, 1))
        return self.network.gradient()

    def kinked_pairs(self, coordinate: Tensor) -> Tensor:
        """The indices of those pairs that the network evaluates, from coordinates [M, 2].

        Args:
            coordinate: coordinates; the sides of the table are at ±1, and those beyond count as in the edge cell.

        Returns:
            The indices [P].
        """
        # The cell is the one that grid_sample reads. At a node the other cells may have other slopes.
        cell = coordinate.add(1).mul_(self.cells / 2).clamp_(0, self.cells - 1).int()
        kinked = self.kinked.view(-1).index_select(0, torch.add(cell[:, 0], cell[:, 1], alpha=self.cells))
        return torch.from_numpy(np.flatnonzero(kinked.numpy()))  # much faster than nonzero()

    def _displacements(self, rows: slice) -> Tensor:
        """The displacements [r, S + 1, 2] of some rows of nodes."""
        distance = self.nodes.abs().expm1().copysign(self.nodes)
        y, x = torch.meshgrid(distance[rows], distance, indexing="ij")
        return torch.stack([x, y], dim=-1)

    def _stripes(self, shared: int) -> list[slice]:
        """Rows of nodes in stripes; the network is evaluated for one stripe at a time.

        Args:
            shared: number of rows that a stripe shares with the next one.

        Returns:
            The rows of every stripe.
        """
        count = len(self.nodes)
        step = max(1, pairs_at_once(self.nodes.device) // count)
        return [slice(start, min(start + step + shared, count)) for start in range(0, count - shared, step)]


class PiecewiseTile:
    """The biases of a network at displacements [G, t, J, 2], most of them read from a table."""

    def __init__(self, bias: TiledPiecewise, displacement: Tensor) -> None:
        self.bias, self.displacement = bias, displacement
        coordinate = displacement.abs().log1p_().copysign_(displacement).div_(bias.side)
        # grid_sample at NaN may read anywhere in memory. At the edge the network is evaluated anyway.
        coordinate.nan_to_num_(1, 1, -1)
        groups, queries, keys, _ = displacement.shape
        # All groups count as one entry of the batch here, unlike in TiledTable: the backward pass makes a gradient of
        # the table for each entry, and this table is large.
        self.table_tile = TableTile(bias.table, coordinate.view(1, groups * queries, keys, 2))
        self.pairs = bias.kinked_pairs(coordinate.view(-1, 2))  # [P]
        self.layers = HiddenLayers(bias.network.network, displacement.view(-1, 2)[self.pairs])

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        values = self.table_tile.values()[0].flatten(1)  # [I, G t J]
        values[:, self.pairs] = self.layers.values().T
        groups, queries, keys, _ = self.displacement.shape
        return values.view(-1, groups, queries, keys).transpose(0, 1).contiguous()

    def backward(self, gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the positions from that of the biases [G, I, t, J]."""
        per_pair = gradient.transpose(0, 1).flatten(1).clone()  # [I, G t J]
        want_positions = wanted.queries or wanted.keys
        grad_kinked = self.bias.network.add(
            self.layers, per_pair[:, self.pairs].T, want_bias=wanted.bias, want_displacement=want_positions
        )
        per_pair[:, self.pairs] = 0
        grad_coordinate = self.table_tile.backward_coordinate(
            per_pair.view(1, -1, *self.table_tile.coordinate.shape[1:3]),
            want_bias=wanted.bias,
            want_coordinate=want_positions,
        )
        if grad_coordinate is None or grad_kinked is None:
            return None, None
        # The coordinate of a displacement d is sign(d) log(1 + abs(d)) / side.
        inverse_slope = self.displacement.abs().add_(1).mul_(self.bias.side)
        grad_displacement = grad_coordinate.view_as(inverse_slope).div(inverse_slope)
        grad_displacement.view(-1, 2)[self.pairs] = grad_kinked
        return position_gradients(grad_displacement, wanted)


def _values_and_signs(network: MLPBias, displacement: Tensor, side: float) -> tuple[Tensor, Tensor]:
    """The network at nodes, and the signs of its hidden units.

    Args:
        network: network of the bias.
        displacement: displacements of the nodes [r, S + 1, 2].
        side: largest log-spaced coordinate of a node.

    Returns:
        Values [I, r, S + 1]; and the signs of all hidden units [2 F, r, S + 1] as bytes, 0 where rounding may decide.
    """
    # Units are rows, because reductions over rows are faster.
    spaced = displacement.abs().log1p_().copysign_(displacement).view(-1, 2).T
    first = torch.addmm(network.b1[:, None], network.w1, spaced)
    second = torch.addmm(network.b2[:, None], network.w2, first.relu())
    values = torch.addmm(network.b3[:, None], network.w3, second.relu())
    largest_first = network.w1.abs().sum(1) * side + network.b1.abs()
    largest_second = network.w2.abs() @ largest_first + network.b2.abs()
    rounding = (len(network.w1) + 8) * torch.finfo(network.w1.dtype).eps
    units, margin = torch.cat([first, second]), rounding * torch.cat([largest_first, largest_second])[:, None]
    # A unit whose weights and bias are zero has the margin 0. It is off everywhere, so it counts as negative.
    signs = (units > margin).char() - (units <= -margin).char()
    shape = displacement.shape[:2]
    return values.view(-1, *shape), signs.view(-1, *shape)
