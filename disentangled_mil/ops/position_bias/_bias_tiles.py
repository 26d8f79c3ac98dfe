"""Position biases of one tile of queries after the other, and their gradients: from a table, a network, or both.

A network of ReLUs is linear in the log-spaced displacement wherever none of its units changes sign. In every cell that
no such kink crosses, a table of its values is the network itself, and so are the gradients; in a cell that one kink
crosses, two planes are. Only the pairs in other cells are given to the network: of 2,500 x 144 x 8 pairs all over a
square 15 % lie in folded cells, and 5 % go to the network.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..._precision import wide_dtype
from ._folds import FoldRows
from ._linear_runs import LinearRuns
from ._log_spacing import SpacedAxis, spaced

# A network is given so many pairs at a time, and its hidden layers are held for so many times as many at most.
NETWORK_TILE, _HELD_TILES = 11 << 10, 2
# A table of a network is read for so many pairs at a time, where few of them go to the network. Batches of several bags
# take more memory anyway, and are read for twice as many, beyond which nothing becomes quicker; so do large bags, which
# are read for so many pairs for each of their queries.
PIECES_TILE, PIECES_TILE_PER_QUERY = 128 << 10, 52
# What lattices share is held for so many times as many columns, or rows, as a tile has queries.
_HELD_COORDINATES = 2
# Tiles fit the caches of a CPU. Elsewhere every launch has its price, and they are so many times larger: some 300 MB in
# float32, all that is made of a tile together.
DEVICE_TILES = 32
# A table of a network of F features has (pairs x F) ^ (2/3) / 2 nodes. With more pairs than so many for each F ^ 2 it
# is quicker than the network for all of them (half as many are as quick either way) ...
LEAST_PAIRS = 216
# ... and with so many nodes all but a few pairs in a hundred are read.
MOST_NODES = 1 << 18
# Slopes are differences of rounded values: nodes that are nearer to each other tell too little of them.
_LEAST_PITCH = 2**-9


class TableBias:
    """Biases from a table [I, R, R].

    Attributes:
        reach: of the table, in units of which positions are given.
        pairs_at_once: how many pairs a tile may have.
        tabulated: whether a table is read, which must not happen at NaN.
    """

    pairs_at_once, tabulated = math.inf, True

    def __init__(self, values: Tensor, reach: float) -> None:
        self.reach = reach
        self._table, self._gradient = values[None], torch.zeros_like(values)

    def between(self, queries: Tensor, keys: Tensor, at_once: int) -> "Callable[[slice], TableTile]":
        """What makes the biases of a tile of a bag's queries [N, 2], so many of them, and its keys [G, J, 2].

        All positions are finite.
        """
        # Complex numbers are subtracted faster than pairs.
        query, key = torch.view_as_complex(queries)[:, None], torch.view_as_complex(keys)[:, None]
        return lambda tile: TableTile(self._table, torch.view_as_real(query[tile] - key), self._gradient)

    def finish(self, into: Sequence[Tensor]) -> None:
        """Add what all tiles passed back."""
        into[0].add_(self._gradient)


class TableTile:
    """Biases at places [G, t, J, 2] of a table [1, I, R, S], which spans [-1, 1] along both axes."""

    def __init__(self, table: Tensor, place: Tensor, gradient: Tensor) -> None:
        groups, queries, keys, _ = place.shape
        lanes = _lanes(groups, place.device)
        self.shape = (lanes, groups // lanes, -1, queries, keys)
        self.table, self.gradient = table.expand(lanes, -1, -1, -1), gradient
        self.place = place.view(lanes, -1, keys, 2)

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        lanes, within, _, queries, keys = self.shape
        read = grid_sample(self.table, self.place, align_corners=True, padding_mode="border")
        by_group = read.view(lanes, -1, within, queries, keys).transpose(1, 2)
        return by_group.contiguous().view(lanes * within, -1, queries, keys)

    def backward(self, change: Tensor, want_bias: bool, want_position: bool) -> Tensor | None:
        """From the gradient of the biases [G, I, t, J] that of the places [G, t, J, 2]; the table's is added up."""
        per_lane = change.view(self.shape).transpose(1, 2).reshape(len(self.place), -1, *self.place.shape[1:3])
        into_table, moved = torch.ops.aten.grid_sampler_2d_backward(
            per_lane, self.table, self.place, 0, 1, True, [want_bias, want_position]
        )
        if want_bias:
            self.gradient += into_table.sum(0)
        return moved.view(-1, *self.shape[-2:], 2) if want_position else None


class NetworkBias:
    """Biases of a network, evaluated for every pair; attributes as of :class:`TableBias`."""

    reach, tabulated = 1.0, False

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts, self.gradient = parts, [torch.zeros_like(part) for part in parts]
        self.pairs_at_once: float = on_device(NETWORK_TILE, parts[0].device)

    def between(self, queries: Tensor, keys: Tensor, at_once: int) -> "Callable[[slice], NetworkTile | PiecewiseTile]":
        """What makes the biases of a tile of a bag's queries [N, 2], so many of them, and its keys [G, J, 2]."""
        return lambda tile: NetworkTile(self, queries[tile, None] - keys[:, None])

    def rows(self, spaced: Tensor) -> "NetworkRows | SplitRows":
        """The network at log-spaced displacements [M, 2]; its hidden layers are kept where they are not too many."""
        most = _HELD_TILES * on_device(NETWORK_TILE, spaced.device)
        return (NetworkRows if len(spaced) <= most else SplitRows)(self.parts, spaced, self.gradient)

    def finish(self, into: Sequence[Tensor]) -> None:
        """Add what all tiles passed back."""
        for total, part in zip(into, self.gradient, strict=True):
            total += part


class NetworkTile:
    """Biases of a network at displacements [G, t, J, 2]."""

    def __init__(self, bias: NetworkBias, displacement: Tensor) -> None:
        self.displacement = displacement
        self.rows = bias.rows(spaced(displacement).view(-1, 2))

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        return self.rows.values().view(*self.displacement.shape[:-1], -1).movedim(-1, 1).contiguous()

    def backward(self, change: Tensor, want_bias: bool, want_position: bool) -> Tensor | None:
        """From the gradient of the biases [G, I, t, J] that of the displacements [G, t, J, 2]; can be called once."""
        moved = self.rows.backward(change.movedim(1, -1).flatten(0, -2), want_position)
        return None if moved is None else through_log(moved.view_as(self.displacement), self.displacement)


class PiecewiseBias(NetworkBias):
    """Biases of a network, from a table of its values where it is linear, and from planes where it is folded.

    Args:
        parts: of the network.
        extent: the largest displacement along x and along y.
        nodes: of the table, about.
        most: pairs in a tile.
    """

    tabulated = True

    def __init__(self, parts: Sequence[Tensor], extent: Sequence[float], nodes: float, most: int) -> None:
        self.sides = sides = [max(math.log1p(length), 1e-3) for length in extent]
        pitch = max(2 * math.sqrt(sides[0] * sides[1] / nodes), _LEAST_PITCH, 2 * max(sides) / NETWORK_TILE)
        # Even numbers, so that no displacement of zero is at a node, whose cell would be in doubt.
        width, height = (2 + 2 * math.floor(side / pitch) for side in sides)
        # The network and the table take places in [-1, 1]: log-spaced displacements in units of the sides.
        super().__init__([parts[0] * parts[0].new_tensor(sides), *parts[1:]])
        self.runs = LinearRuns(self.parts, height, width, NETWORK_TILE)
        self.folds = self.runs.folds
        self.table = self.runs.expand(self.rows(self.runs.ends).values())[None]
        self.planes = self.folds.planes(self.table[0])
        self.table_gradient, self.plane_gradient = torch.zeros_like(self.table[0]), torch.zeros_like(self.planes)
        # 0 where the network is linear, from 1 on the number of a fold, -1 where the network itself is needed.
        self.kinds = -self.runs.kinked.to(self.table.dtype)
        self.kinds.view(-1)[self.folds.cells] = torch.arange(1, len(self.folds.cells) + 1, device="cpu").to(self.kinds)
        self.pairs_at_once = min(most, _HELD_TILES * NETWORK_TILE / (self.kinds < 0).double().mean().item())

    def between(self, queries: Tensor, keys: Tensor, at_once: int) -> "Callable[[slice], PiecewiseTile]":
        """What makes the biases of a tile of a bag's queries [N, 2], so many of them, and its keys [G, J, 2].

        All positions are finite.
        """
        axes = [
            SpacedAxis(queries[:, axis], keys[..., axis], side, _HELD_COORDINATES * at_once)
            for axis, side in enumerate(self.sides)
        ]
        return lambda tile: PiecewiseTile(self, axes, tile)

    def finish(self, into: Sequence[Tensor]) -> None:
        """Add what all tiles passed back."""
        self.folds.contract(self.plane_gradient, self.table_gradient)
        self.rows(self.runs.ends).backward(self.runs.contract(self.table_gradient), want_position=False)
        self.gradient[0] *= self.gradient[0].new_tensor(self.sides)
        super().finish(into)


class PiecewiseTile:
    """Biases of a network that is linear in most places, of a tile of queries.

    Attributes:
        exceptions: for the network itself, then for folds: pairs, where their biases are, and the rows that make them.
    """

    def __init__(self, bias: PiecewiseBias, axes: Sequence[SpacedAxis], tile: slice) -> None:
        self.axes, self.tile = axes, tile
        # Complex numbers are made and taken faster than pairs of reals.
        places = torch.complex(*(axis.places(tile) for axis in axes))  # [G, t, J]
        self.size = places[0].numel()
        self.table = TableTile(bias.table, torch.view_as_real(places), bias.table_gradient)
        kinds = bias.kinds.expand(len(self.table.place), 1, -1, -1)
        kind = grid_sample(kinds, self.table.place, mode="nearest", padding_mode="border", align_corners=False).view(-1)
        signs = kind.numpy()  # compared and searched faster than in PyTorch
        pairs = [torch.from_numpy(np.flatnonzero(chosen)) for chosen in (signs < 0, signs > 0)]  # [P] each
        by_network, in_folds = (torch.view_as_real(places.view(-1).index_select(0, those)) for those in pairs)
        which = kind.index_select(0, pairs[1]).long() - 1
        rows = bias.rows(by_network), FoldRows(bias.folds, bias.planes, which, in_folds, bias.plane_gradient)
        heads = bias.table.shape[1]
        self.exceptions = [(those, self._entries(those, heads), made) for those, made in zip(pairs, rows, strict=True)]

    def _entries(self, pairs: Tensor, heads: int) -> Tensor:
        """Where all heads' biases of some pairs [P] are [P * I]."""
        if heads == 1:
            return pairs
        pair, head = pairs[:, None], torch.arange(heads, device=pairs.device)
        return (pair + (pair // self.size * (heads - 1) + head) * self.size).view(-1)

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        values = self.table.values()
        for _, entries, rows in self.exceptions:
            values.view(-1).scatter_(0, entries, rows.values().reshape(-1))
        return values

    def backward(self, change: Tensor, want_bias: bool, want_position: bool) -> Tensor | None:
        """From the gradient of the biases [G, I, t, J], used up, that of the displacements; can be called once."""
        flat, heads, moved_exceptions = change.view(-1), change.shape[1], []
        while self.exceptions:  # none is held longer than it is needed
            pairs, entries, rows = self.exceptions.pop()
            arriving = flat.index_select(0, entries).view(-1, heads)
            moved_exceptions.append((pairs, rows.backward(arriving, want_position)))
            flat.scatter_(0, entries, torch.zeros_like(arriving).view(-1))  # faster than the number 0
            del rows, entries, arriving
        moved = self.table.backward(change, want_bias, want_position)
        if moved is None:
            return None
        for pairs, moved_rows in moved_exceptions:
            assert moved_rows is not None
            torch.view_as_complex(moved).view(-1).scatter_(0, pairs, torch.view_as_complex(moved_rows))
        # Written over the places, which nothing needs any longer.
        slopes = torch.view_as_complex(self.table.place.view_as(moved))
        torch.complex(*(axis.slopes(self.tile) for axis in self.axes), out=slopes)
        return moved.mul_(torch.view_as_real(slopes))


class NetworkRows:
    """A network at log-spaced displacements [M, 2], with its hidden layers; the network's gradient is added up."""

    def __init__(self, parts: Sequence[Tensor], spaced: Tensor, gradient: Sequence[Tensor]) -> None:
        w1, b1, w2, b2, _, _ = self.parts = parts
        self.spaced, self.gradient = spaced, gradient
        self.first = torch.addmm(b1, spaced, w1.T).relu_()
        self.second = torch.addmm(b2, self.first, w2.T).relu_()

    def values(self) -> Tensor:
        """The biases [M, I]."""
        *_, w3, b3 = self.parts
        return torch.addmm(b3, self.second, w3.T)

    def backward(self, change: Tensor, want_position: bool) -> Tensor | None:
        """From the gradient of the biases [M, I] that of the log-spaced displacements.

        It is written over the hidden layers, so that this can be called once.
        """
        w1, _, w2, _, w3, _ = self.parts
        into_w1, into_b1, into_w2, into_b2, into_w3, into_b3 = self.gradient
        into_b3 += change.sum(0)
        into_w3.addmm_(change.T, self.second)
        product = torch.mul if len(w3) == 1 else torch.mm  # the same, and faster
        into_second = _through_relu(product(change, w3), self.second)
        into_w2.addmm_(into_second.T, self.first)
        into_b2 += into_second.sum(0)
        into_first = _through_relu(into_second @ w2, self.first)
        into_b1 += into_first.sum(0)
        # Products with a side of two are faster with it at the outside.
        into_w1 += (self.spaced.T @ into_first).T
        return torch.mm(into_first, w1.T.contiguous().T) if want_position else None


class SplitRows:
    """:class:`NetworkRows` for so many rows that their hidden layers are not kept."""

    def __init__(self, parts: Sequence[Tensor], spaced: Tensor, gradient: Sequence[Tensor]) -> None:
        self.parts, self.spaced, self.gradient = parts, spaced, gradient

    def values(self) -> Tensor:
        """The biases [M, I]."""
        return torch.cat([rows.values() for rows in self._split()])

    def backward(self, change: Tensor, want_position: bool) -> Tensor | None:
        """From the gradient of the biases [M, I] that of the log-spaced displacements."""
        changes = torch.split(change, on_device(NETWORK_TILE, change.device))
        moved = [rows.backward(part, want_position) for rows, part in zip(self._split(), changes, strict=True)]
        return torch.cat([part for part in moved if part is not None]) if want_position else None

    def _split(self) -> Iterator[NetworkRows]:
        for part in torch.split(self.spaced, on_device(NETWORK_TILE, self.spaced.device)):
            yield NetworkRows(self.parts, part, self.gradient)


TiledBias: TypeAlias = TableBias | NetworkBias
BiasTile: TypeAlias = TableTile | NetworkTile | PiecewiseTile


def on_device(tile: int, device: torch.device) -> int:
    """The size of a tile on some device, from that on a CPU."""
    return tile if device.type == "cpu" else DEVICE_TILES * tile


def tiled_bias(tensors: Sequence[Tensor], reach: float) -> TiledBias | None:
    """The bias of a batch, in the cheapest way.

    Args:
        tensors: as of :class:`~._attention_tiles.BagScores`; the bias is none, one table or the six of a network.
        reach: of the table.
    """
    query, _, query_position, key_position, mask, logit, *bias = (tensor.detach() for tensor in tensors)
    parts = [part.to(wide_dtype(query)) for part in bias]
    if len(parts) < 2:
        return TableBias(parts[0], reach) if parts else None
    # On a GPU the network is quick, sums in a table have no fixed order, and products may be too coarse for slopes.
    if query.device.type == "cpu" and all(bool(part.isfinite().all()) for part in parts):
        seen, features = logit != -math.inf, len(parts[0])
        pairs = mask.sum(1) * seen.sum((1, 2))  # [B]
        count = int(pairs.sum())
        if count > LEAST_PAIRS * features**2:
            low, high = _range(query_position, mask)
            first, last = _range(key_position.flatten(1, 2), seen.flatten(1))
            extent = torch.maximum(high - first, last - low)[pairs > 0].amax(0).double().tolist()
            if all(map(math.isfinite, extent)):
                nodes = min((count * features) ** (2 / 3) / 2, MOST_NODES / len(parts[4]))
                most = max(min(len(query), 2) * PIECES_TILE, PIECES_TILE_PER_QUERY * query.shape[2])
                return PiecewiseBias(parts, extent, nodes, most)
    return NetworkBias(parts)


def _range(position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest coordinates [B, 2] of positions [B, M, 2]."""
    return (
        position.masked_fill(~mask[..., None], math.inf).amin(1),
        position.masked_fill(~mask[..., None], -math.inf).amax(1),
    )


def _lanes(groups: int, device: torch.device) -> int:
    """Parts of equally many groups, so that every thread has one, with a table of its own."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return next(lanes for lanes in range(1, groups + 1) if groups % lanes == 0 and lanes >= min(threads, groups))


def through_log(gradient: Tensor, displacement: Tensor) -> Tensor:
    """The gradient before displacements were log-spaced, in place of that after it."""
    return gradient.div_(displacement.abs().add_(1))


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient before a ReLU, in place of its output."""
    changed: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=output)
    return changed
