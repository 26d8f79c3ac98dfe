"""What the softmax of biased attention is taken of, and its gradient, a tile of queries at a time."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from . import _tall_products as products

# Entries of the heads x queries x keys matrix in one tile, so that several of them fit into a core's cache ...
TILE = 1 << 17
# ... but no fewer queries than make a matrix product worth its name.
LEAST_QUERIES = 32
# The network of an exact bias holds its hidden layers for all pairs of a tile, so that these are fewer.
NETWORK_TILE = 7 << 12
LEAST_NETWORK_QUERIES = 8
# A finite place beyond every table.
_FAR = 1e6


class BagScores:
    """The scores of one bag: its real queries, and the keys that at least one group can see.

    Args:
        tensors: query [B, H, N, D], key [B, H, J, D], positions [B, N, 2] and [B, G, J, 2], query mask [B, N],
            key logits [B, G, J], then the tensors of the bias: none, a table, or the six of a network.
        reach: of the table.
        scale: of Q K^T.
        bag: which one of the batch.
        skip: leave out what has no weight; otherwise its weights are computed to be zero.
        scratch: room that bags share.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        reach: float,
        scale: float,
        bag: int,
        *,
        skip: bool = True,
        scratch: "Scratch | None" = None,
    ) -> None:
        query, key, query_position, key_position, mask, logit, *bias = (tensor.detach() for tensor in tensors)
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.bag, self.heads, self.groups = bag, query.shape[1], key_position.shape[1]
        self.rows = _index(mask[bag]) if skip else None
        self.columns = _index((logit[bag] != -math.inf).any(0)) if skip else None
        self.padding = None if skip or mask[bag].all() else ~mask[bag][:, None]  # [N, 1]
        self.query = take(query[bag], 1, self.rows)  # [H, N, D]
        if self.padding is not None:
            self.query = self.query.masked_fill(self.padding, 0)
        self.scale = scale
        self.scaled_key = take(key[bag], 1, self.columns).to(self.wide) * scale  # [H, J, D]
        # Of a table, in units of its reach.
        self.query_place = take(query_position[bag], 0, self.rows).to(self.wide) / reach  # [N, 2]
        self.key_place = take(key_position[bag], 1, self.columns).to(self.wide) / reach  # [G, J, 2]
        logit = take(logit[bag], 1, self.columns).to(self.wide)
        if len(bias) == 1:
            # A table must not be read at NaN, which would be somewhere in memory; it is seen in the scores instead.
            if (lost := self.query_place.isnan().any(-1, keepdim=True)).any():
                self.query = self.query.masked_fill(lost, math.nan)
            logit = logit.masked_fill(self.key_place.isnan().any(-1), math.nan)
            self.query_place, self.key_place = (
                place.nan_to_num(0, posinf=_FAR, neginf=-_FAR) for place in (self.query_place, self.key_place)
            )
        dead = (logit == -math.inf).all(-1, keepdim=True)  # groups without any key
        self.logit = self._per_head(logit.masked_fill(dead, 0)) if logit.any() else None  # [H, 1, J]
        self.alive = self._per_head(~dead) if dead.any() else None  # [H, 1, 1]
        self.bias, self.reach = [part.to(self.wide) for part in bias], reach
        self.scratch = scratch or Scratch()

    def tiles(self, maps: int = 1) -> Iterator[slice]:
        """The bag's queries in tiles, for so many maps at a time."""
        count, keys = self.query.shape[1], self.scaled_key.shape[1]
        step = max(LEAST_QUERIES, TILE // max(1, maps * self.heads * keys))
        if len(self.bias) == 6:
            step = min(step, max(LEAST_NETWORK_QUERIES, NETWORK_TILE // max(1, self.groups * keys)))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def weights(self, tile: slice) -> tuple[Tensor, "NetworkTile | None"]:
        """Softmax of a tile's scores [H, t, J], zeros for heads without keys; and the network's hidden layers."""
        query, key = self.query[:, tile].to(self.wide), self.scaled_key.transpose(1, 2)
        network = self.network(tile)
        scores = self._bias(tile, network).baddbmm_(query, key) if self.bias else query @ key
        if self.logit is not None:
            scores += self.logit
        weights = scores.softmax(-1)
        if self.alive is not None:
            weights *= self.alive
        if self.padding is not None:
            weights.masked_fill_(self.padding[tile], 0)
        return weights, network

    def network(self, tile: slice) -> "NetworkTile | None":
        """The network of a tile, if the bias is one; it is good until the next is asked for."""
        return NetworkTile(self.bias, self.displacement(tile), self.scratch) if len(self.bias) == 6 else None

    def displacement(self, tile: slice) -> Tensor:
        """Displacements of a tile's queries from the keys, in units of the reach [G, t, J, 2]."""
        keys = self.key_place.shape[1]
        # Of rows as long as the keys', which are subtracted faster than pairs.
        queries = self.query_place[tile].repeat(1, keys)
        away: Tensor = queries - self.key_place.flatten(1)[:, None]
        return away.view(*away.shape[:2], keys, 2)

    def _bias(self, tile: slice, network: "NetworkTile | None") -> Tensor:
        """Bias of a tile [H, t, J]."""
        if network is None:
            table = self.bias[0].expand(self.groups, -1, -1, -1)  # one per group, so that threads share the work
            place = self.displacement(tile)
            return grid_sample(table, place, align_corners=True, padding_mode="border").flatten(0, 1)
        return network.biases().movedim(-1, 1).flatten(0, 1)

    def _per_head(self, grouped: Tensor) -> Tensor:
        return grouped.repeat_interleave(self.heads // self.groups, dim=0)[:, None]


class BagScoresGradient:
    """Adds up, tile by tile, the gradient of one bag's scores.

    Args:
        scores: of the bag.
        gradients: one tensor for each that the scores were made of; the bag's share of them is written or added.
        wanted: which of them are needed; the others may be left as they are.
    """

    def __init__(self, scores: BagScores, gradients: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.scores, self.bag = scores, scores.bag
        self.gradients, self.wanted = gradients, wanted
        _, _, self.want_query_position, self.want_key_position, *_ = wanted
        self.want_bias = any(wanted[6:])
        in_place = scores.rows is None and gradients[0].dtype == scores.wide
        self.query = gradients[0][self.bag] if in_place else torch.zeros_like(scores.query, dtype=scores.wide)
        self.key = torch.zeros_like(scores.scaled_key)  # [H, J, D]
        self.query_place = torch.zeros_like(scores.query_place)  # [N, 2]
        self.key_place = torch.zeros_like(scores.key_place)  # [G, J, 2]
        self.logit = torch.zeros_like(scores.scaled_key[..., 0])  # [H, J]
        self.bias = [torch.zeros_like(part) for part in scores.bias]

    def add(self, tile: slice, weights: Tensor, network: "NetworkTile | None", gradient: Tensor) -> None:
        """Take in the gradient of a tile's weights [H, t, J]; the network's hidden layers, if given, are used up."""
        scores = self.scores
        change = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
        self.query[:, tile] = change @ scores.scaled_key
        self.key.baddbmm_(change.transpose(1, 2), scores.query[:, tile].to(scores.wide))
        self.logit += change.sum(1)
        if scores.bias and (self.want_bias or self.want_key_position or self.want_query_position):
            self._add_bias(tile, network, change.view(scores.groups, scores.heads // scores.groups, *change.shape[1:]))

    def finish(self) -> None:
        """Write the bag's share of the gradients."""
        scores, bag = self.scores, self.bag
        query, key, query_position, key_position, _, logit, *bias = self.gradients
        tokens, keys = query.shape[2], key.shape[2]
        if self.query.data_ptr() != query[bag].data_ptr():
            query[bag] = put(self.query, 1, scores.rows, tokens)
        key[bag] = put(self.key * scores.scale, 1, scores.columns, keys)
        query_position[bag] = put(self.query_place / scores.reach, 0, scores.rows, tokens)
        key_position[bag] = put(self.key_place / scores.reach, 1, scores.columns, keys)
        per_group = self.logit.view(scores.groups, scores.heads // scores.groups, -1).sum(1)
        logit[bag] = put(per_group, 1, scores.columns, keys)
        for total, part in zip(bias, self.bias, strict=True):
            total += part

    def _add_bias(self, tile: slice, network: "NetworkTile | None", change: Tensor) -> None:
        """Take in the gradient of a tile's bias [G, I, t, J]."""
        scores = self.scores
        want_position = self.want_key_position or self.want_query_position
        if len(scores.bias) == 1:
            table, place = scores.bias[0].expand(scores.groups, -1, -1, -1), scores.displacement(tile)
            into_table, moved = torch.ops.aten.grid_sampler_2d_backward(
                change, table, place, 0, 1, True, [self.want_bias, want_position]
            )
            if self.want_bias:
                self.bias[0] += into_table.sum(0)
        else:
            network = network or scores.network(tile)
            assert network is not None
            moved = network.backward(change.movedim(1, -1), self.bias)
        if want_position:
            self.key_place -= moved.sum(1)
            if self.want_query_position:
                self.query_place[tile] += moved.sum((0, 2))


class NetworkTile:
    """The network of an exact bias at the displacements [G, t, J, 2] of a tile, with its hidden layers."""

    def __init__(self, parts: Sequence[Tensor], displacement: Tensor, scratch: "Scratch") -> None:
        w1, b1, w2, b2, _, _ = self.parts = parts
        self.displacement = displacement.reshape(-1, 2)
        self.shape = displacement.shape[:-1]
        self.first, self.second, self.spare = scratch.matrices(self.displacement, len(w1))
        self.spaced = torch.copysign(self.displacement.abs().log1p_(), self.displacement)  # as log_spaced
        torch.addmm(b1, self.spaced, w1.T, out=self.first).relu_()
        torch.clamp(products.linear(self.first, w2, b2), min=0, out=self.second)

    def biases(self) -> Tensor:
        """The biases [G, t, J, I]."""
        *_, w3, b3 = self.parts
        return torch.addmm(b3, self.second, w3.T).view(*self.shape, len(b3))

    def backward(self, gradient: Tensor, into: Sequence[Tensor]) -> Tensor:
        """From the gradient of the biases [G, t, J, I] that of the displacements; the network's is added to ``into``.

        It is written over the hidden layers, so that this can be called once.
        """
        w1, _, w2, _, w3, _ = self.parts
        into_w1, into_b1, into_w2, into_b2, into_w3, into_b3 = into
        gradient = gradient.reshape(-1, len(w3))
        into_b3 += gradient.sum(0)
        into_w3.addmm_(gradient.T, self.second)
        product = torch.mul if len(w3) == 1 else torch.mm  # the same, and faster
        into_second = _through_relu(product(gradient, w3, out=self.spare), self.second)
        into_w2 += products.correlate(into_second, self.first)
        into_b2 += into_second.sum(0)
        into_first = _through_relu(products.linear(into_second, w2.T.contiguous()), self.first)
        into_b1 += into_first.sum(0)
        # Products with a side of two are faster with it at the outside.
        into_w1 += (self.spaced.T @ into_first).T
        moved = torch.mm(into_first, w1.T.contiguous().T)
        return moved.div_(self.displacement.abs().add_(1)).view(*self.shape, 2)


class Scratch:
    """Room for the hidden layers of one tile after the other: memory that is asked for again and again is slow."""

    def __init__(self) -> None:
        self._room: Tensor | None = None

    def matrices(self, like: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Three matrices of ``width`` columns, as long as ``like``; those of the call before are given away."""
        if self._room is None or self._room.shape[1] < len(like):
            self._room = like.new_empty(3, len(like), width)
        first, second, spare = self._room[:, : len(like)]
        return first, second, spare


def take(tensor: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """The entries at an index, or all of them."""
    return tensor if index is None else tensor.index_select(dim, index)


def put(tensor: Tensor, dim: int, index: Tensor | None, size: int) -> Tensor:
    """The transpose of :func:`take`: the entries at their places among ``size``, zeros elsewhere."""
    if index is None:
        return tensor
    shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    return tensor.new_zeros(shape).index_copy_(dim, index, tensor)


def _index(mask: Tensor) -> Tensor | None:
    """Where a mask is True; None if everywhere."""
    return None if mask.all() else mask.nonzero().squeeze(1)


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient before a ReLU, in place of its output."""
    changed: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=output)
    return changed
