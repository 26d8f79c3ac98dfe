"""A network of ReLUs that is read from a table wherever it is linear. The result is exact.

The network is linear in log-spaced displacements except where one of its 2 F hidden units changes its sign. It is
evaluated once at the nodes of a table of S x S cells. The first layer is affine. A unit of it that has the same sign at
all four corners of a cell therefore has that sign all over the cell. If all of its units do, the second layer is affine
in the cell too, and the same holds for its units. If those also keep their signs, the network is affine in the cell:
bilinear reading gives its values and slopes, and reading backwards gives its gradients through the nodes. A sign counts
only beyond a margin for rounding. All pairs in other cells, or outside of the table, go to the network.

Kinks cross about 2 F S cells. Pairs in these and the nodes cost an evaluation of the network each, and a node costs
more; few evaluations are left at S^3 = F x pairs / 2. Attention of 2,500 queries and 144
keys, forward and backward, is 1.6 times as quick as with the network for every pair.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ._network import MOST_PAIRS, HiddenLayers, MLPBias, TiledNetwork
from ._table import BiasTable, TableTile, TiledTable
from ._tiled import BiasWanted, into_places

# Displacements that the table covers: those between places in [-1, 1].
_REACH = 2.0
# Slopes are differences of rounded values, and too inexact between nodes that are nearer than those of this table.
_MOST_CELLS = 1024
# Pairs for each node of the table, below which it saves too little.
LEAST_PAIRS_PER_NODE = 16


def cells_for(pairs: int, features: int) -> int | None:
    """The number S of cells along a side of the table; None where the network should be evaluated for all pairs."""
    cells = max(3, round((features * pairs / 2) ** (1 / 3)))
    return min(cells, _MOST_CELLS) if pairs > LEAST_PAIRS_PER_NODE * cells**2 else None


class TiledPiecewise:
    """A :class:`~._tiled.TiledBias` that reads a network from a table where it is linear.

    Args:
        network: network of the bias, on the CPU.
        cells: number S of cells along each side of the table, at least 3.
    """

    def __init__(self, network: MLPBias, cells: int) -> None:
        self.exact = TiledNetwork(network)
        # Cells at the edge stand for all that is outside, and are read by the network. The others cover the reach.
        self.side = math.log1p(_REACH) * cells / (cells - 2)
        self.nodes = torch.linspace(-self.side, self.side, cells + 1, dtype=network.w1.dtype, device="cpu")
        heads = len(network.w3)
        self.table = TiledTable(BiasTable(network.w1.new_empty(heads, cells + 1, cells + 1), 1.0))
        self.kinked = network.w1.new_ones(cells, cells)
        for rows in self._stripes():
            values, signs, sure = _values_and_signs(network, self._displacements(rows), self.side)
            self.table.table.values[:, rows] = values.movedim(-1, 0)
            beside = (signs[:, 1:] == signs[:, :-1]).all(-1) & sure[:, 1:] & sure[:, :-1]
            below = (signs[1:] == signs[:-1]).all(-1)
            linear = beside[1:] & beside[:-1] & below[:, 1:]
            self.kinked[rows.start : rows.stop - 1] = (~linear).to(values.dtype)
        for edge in (self.kinked[0], self.kinked[-1], self.kinked[:, 0], self.kinked[:, -1]):
            edge.fill_(1)

    @property
    def most_pairs(self) -> float:
        """The number of pairs in a tile. The network gets its share of kinked ones, about a tile of its own."""
        return MOST_PAIRS / self.kinked.mean().item()

    def tile(self, queries: Tensor, keys: Tensor) -> "PiecewiseTile":
        """The biases between queries [t, 2] and keys [G, J, 2]."""
        return PiecewiseTile(self, queries[:, None] - keys[:, None])

    def gradient(self) -> MLPBias:
        """The sum of the gradients that all tiles have passed back, also through the nodes of the table."""
        into_values = self.table.gradient().values.movedim(0, -1)  # [S + 1, S + 1, I]
        for rows in self._stripes(overlap=0):
            layers = HiddenLayers(self.exact.network, self._displacements(rows).view(-1, 2))
            layers.backward(into_values[rows].flatten(0, 1), self.exact.into, want_displacement=False)
        return self.exact.gradient()

    def _displacements(self, rows: slice) -> Tensor:
        """The displacements [r, S + 1, 2] of some rows of nodes."""
        distance = self.nodes.abs().expm1().copysign(self.nodes)
        y, x = torch.meshgrid(distance[rows], distance, indexing="ij")
        return torch.stack([x, y], dim=-1)

    def _stripes(self, overlap: int = 1) -> list[slice]:
        """Rows of nodes in stripes that share their outer rows. The network is evaluated for one stripe at a time."""
        count = len(self.nodes)
        step = max(1, MOST_PAIRS // count)
        return [slice(start, min(start + step + overlap, count)) for start in range(0, count - overlap, step)]


class PiecewiseTile:
    """The biases of a network at displacements [G, t, J, 2], most of them read from a table."""

    def __init__(self, bias: TiledPiecewise, displacement: Tensor) -> None:
        self.bias, self.displacement = bias, displacement
        place = displacement.abs().log1p_().copysign_(displacement).div_(bias.side)
        groups, queries, keys, _ = displacement.shape
        # One lane: a table and a gradient of it for every group would be too large.
        self.read = TableTile(bias.table, place.view(1, groups * queries, keys, 2))
        kinked = grid_sample(
            bias.kinked[None, None], self.read.place, mode="nearest", padding_mode="border", align_corners=False
        )
        self.pairs = torch.from_numpy(np.flatnonzero(kinked.numpy()))  # [P], much faster than nonzero()
        self.layers = HiddenLayers(bias.exact.network, displacement.view(-1, 2)[self.pairs])

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        values = self.read.values()[0].flatten(1)  # [I, G t J]
        values[:, self.pairs] = self.layers.values().T
        groups, queries, keys, _ = self.displacement.shape
        return values.view(-1, groups, queries, keys).transpose(0, 1).contiguous()

    def backward(self, gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the places from that of the biases [G, I, t, J]."""
        per_pair = gradient.transpose(0, 1).flatten(1).clone()  # [I, G t J]
        want_place = wanted.queries or wanted.keys
        moved = self.layers.backward(
            per_pair[:, self.pairs].T, self.bias.exact.into if wanted.bias else None, want_displacement=want_place
        )
        per_pair[:, self.pairs] = 0
        into_place = self.read.backward_place(
            per_pair.view(1, -1, *self.read.place.shape[1:3]), want_bias=wanted.bias, want_place=want_place
        )
        if into_place is None or moved is None:
            return None, None
        slope = self.displacement.abs().add_(1).mul_(self.bias.side)
        into_displacement = into_place.view_as(slope).div(slope)
        into_displacement.view(-1, 2)[self.pairs] = moved
        return into_places(into_displacement, wanted)


def _values_and_signs(network: MLPBias, displacement: Tensor, side: float) -> tuple[Tensor, Tensor, Tensor]:
    """The network at nodes, and the signs of its hidden units.

    Args:
        network: network of the bias.
        displacement: displacements of the nodes [r, S, 2].
        side: largest log-spaced coordinate of a node.

    Returns:
        Values [r, S, I]; the signs of all hidden units as bytes, eight in a word [r, S, words]; and whether all of them
        are certain in spite of rounding [r, S].
    """
    rounding = (len(network.w1) + 8) * torch.finfo(network.w1.dtype).eps
    spaced = displacement.abs().log1p_().copysign_(displacement).view(-1, 2)
    first = torch.addmm(network.b1, spaced, network.w1.T)
    second = torch.addmm(network.b2, first.relu(), network.w2.T)
    values = torch.addmm(network.b3, second.relu(), network.w3.T)
    largest_first = network.w1.abs().sum(1) * side + network.b1.abs()
    largest_second = network.w2.abs() @ largest_first + network.b2.abs()
    positive, certain = _words(len(first), 2 * len(network.w1)), _words(len(first), 2 * len(network.w1))
    for at, units, largest in ((0, first, largest_first), (len(network.w1), second, largest_second)):
        own = slice(at, at + len(network.w1))
        torch.gt(units, rounding * largest, out=positive[:, own])
        torch.logical_or(positive[:, own], units < -rounding * largest, out=certain[:, own])
    shape = displacement.shape[:2]
    sure = (certain.view(torch.int64) == _words(1, 2 * len(network.w1)).view(torch.int64)).all(-1)
    return values.view(*shape, -1), positive.view(torch.int64).view(*shape, -1), sure.view(shape)


def _words(rows: int, units: int) -> Tensor:
    """One byte of truth for each of some units, and for others that fill up the last word of eight."""
    return torch.ones(rows, -(-units // 8) * 8, dtype=torch.bool, device="cpu")
