"""What the softmax of biased attention is taken of, and its gradient, a tile of queries at a time."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..._precision import wide_dtype
from ..position_bias._bias_tiles import BiasTile, TiledBias, on_device

# Entries of the heads x queries x keys matrix in one tile, so that several of them fit into a core's cache ...
TILE = 1 << 18
# ... but no fewer queries than make a matrix product worth its name.
LEAST_QUERIES = 32
# The same where the hidden layers of a network make tiles smaller.
LEAST_NETWORK_QUERIES = 8
# A finite place beyond every table.
_FAR = 1e6


class BagScores:
    """The scores of one bag: its real queries, and the keys that at least one group can see.

    Args:
        tensors: query [B, H, N, D], key [B, H, J, D], positions [B, N, 2] and [B, G, J, 2], query mask [B, N],
            key logits [B, G, J], then those of the bias.
        bias: of the whole batch.
        scale: of Q K^T.
        bag: which one of the batch.
        skip: leave out what has no weight; otherwise its weights are computed to be zero.
        maps: that are tiled side by side, each with scores of its own.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        bias: TiledBias | None,
        scale: float,
        bag: int,
        *,
        skip: bool = True,
        maps: int = 1,
    ) -> None:
        query, key, query_position, key_position, mask, logit, *_ = (tensor.detach() for tensor in tensors)
        self.wide = wide_dtype(query)
        self.bag, self.heads, self.groups = bag, query.shape[1], key_position.shape[1]
        self.rows = _index(mask[bag]) if skip else None
        self.columns = _index((logit[bag] != -math.inf).any(0)) if skip else None
        self.padding = None if skip or mask[bag].all() else ~mask[bag][:, None]  # [N, 1]
        self.query = take(query[bag], 1, self.rows)  # [H, N, D]
        if self.padding is not None:
            self.query = self.query.masked_fill(self.padding, 0)
        self.scale, self.bias = scale, bias
        self.scaled_key = take(key[bag], 1, self.columns).to(self.wide) * scale  # [H, J, D]
        self.reach = bias.reach if bias else 1.0
        query_place, key_place = take(query_position[bag], 0, self.rows), take(key_position[bag], 1, self.columns)
        # Not contiguous(), which leaves odd strides where a side is one.
        self.query_place, self.key_place = (
            place.to(self.wide).clone(memory_format=torch.contiguous_format).div_(self.reach)
            for place in (query_place, key_place)
        )  # [N, 2], [G, J, 2]
        logit = take(logit[bag], 1, self.columns).to(self.wide)
        if bias and bias.tabulated:
            # A table must not be read at NaN, which would be somewhere in memory; it is seen in the scores instead.
            if (lost := self.query_place.isnan().any(-1, keepdim=True)).any():
                self.query = self.query.masked_fill(lost, math.nan)
            logit = logit.masked_fill(self.key_place.isnan().any(-1), math.nan)
            self.query_place, self.key_place = (
                place.nan_to_num(0, posinf=_FAR, neginf=-_FAR) for place in (self.query_place, self.key_place)
            )
        keys = self.key_place.shape[1]
        self.at_once = queries_at_once(self.query, self.groups, keys, bias, maps)
        self._bias_of = bias.between(self.query_place, self.key_place, self.at_once) if bias and keys else None
        dead = (logit == -math.inf).all(-1, keepdim=True)  # groups without any key
        self.logit = self._per_head(logit.masked_fill(dead, 0)) if logit.any() else None  # [H, 1, J]
        self.alive = self._per_head(~dead) if dead.any() else None  # [H, 1, 1]

    def tiles(self) -> Iterator[slice]:
        """The bag's queries in tiles."""
        count = self.query.shape[1]
        for start in range(0, count, self.at_once):
            yield slice(start, min(start + self.at_once, count))

    def weights(self, tile: slice) -> tuple[Tensor, BiasTile | None]:
        """Softmax of a tile's scores [H, t, J], zeros for heads without keys; and their biases."""
        query, key = self.query[:, tile].to(self.wide), self.scaled_key.transpose(1, 2)
        bias = self.biases(tile)
        scores = query @ key if bias is None else bias.values().flatten(0, 1).baddbmm_(query, key)
        if self.logit is not None:
            scores += self.logit
        weights = scores.softmax(-1)
        if self.alive is not None:
            weights *= self.alive
        if self.padding is not None:
            weights.masked_fill_(self.padding[tile], 0)
        return weights, bias

    def biases(self, tile: slice) -> BiasTile | None:
        """The biases of a tile, if there are any."""
        return self._bias_of(tile) if self._bias_of else None

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
        self.gradients = gradients
        _, _, self.want_query_position, self.want_key_position, _, self.want_logit, *bias = wanted
        self.want_bias = any(bias)
        in_place = scores.rows is None and gradients[0].dtype == scores.wide
        self.query = gradients[0][self.bag] if in_place else torch.zeros_like(scores.query, dtype=scores.wide)
        self.key = torch.zeros_like(scores.scaled_key)  # [H, J, D]
        self.query_place = torch.zeros_like(scores.query_place)  # [N, 2]
        self.key_place = torch.zeros_like(scores.key_place)  # [G, J, 2]
        self.logit = torch.zeros_like(scores.scaled_key[..., 0])  # [H, J]

    def add(self, tile: slice, weights: Tensor, bias: BiasTile | None, gradient: Tensor) -> None:
        """Take in the gradient of a tile's weights [H, t, J], used up like their biases, if these are given."""
        scores = self.scores
        change = _through_softmax(gradient, weights)
        self.query[:, tile] = change @ scores.scaled_key
        self.key.baddbmm_(change.transpose(1, 2), scores.query[:, tile].to(scores.wide))
        if self.want_logit:
            self.logit += change.sum(1)
        want_position = self.want_key_position or self.want_query_position
        if not (self.want_bias or want_position):
            return
        if bias := bias or scores.biases(tile):
            per_group = change.view(scores.groups, scores.heads // scores.groups, *change.shape[1:])
            moved = bias.backward(per_group, self.want_bias, want_position)
            if moved is not None:
                self.key_place -= moved.sum(1)
                if self.want_query_position:
                    self.query_place[tile] += moved.sum((0, 2))

    def finish(self) -> None:
        """Write the bag's share of the gradients, but for those of the bias."""
        scores, bag = self.scores, self.bag
        query, key, query_position, key_position, _, logit, *_ = self.gradients
        tokens, keys = query.shape[2], key.shape[2]
        if self.query.data_ptr() != query[bag].data_ptr():
            query[bag] = put(self.query, 1, scores.rows, tokens)
        key[bag] = put(self.key * scores.scale, 1, scores.columns, keys)
        query_position[bag] = put(self.query_place / scores.reach, 0, scores.rows, tokens)
        key_position[bag] = put(self.key_place / scores.reach, 1, scores.columns, keys)
        per_group = self.logit.view(scores.groups, scores.heads // scores.groups, -1).sum(1)
        logit[bag] = put(per_group, 1, scores.columns, keys)


def queries_at_once(query: Tensor, groups: int, keys: int, bias: TiledBias | None, maps: int) -> int:
    """How many queries [H, N, D] a tile has, for so many maps at a time."""
    count = max(LEAST_QUERIES, on_device(TILE, query.device) // max(1, maps * len(query) * keys))
    if bias is None:
        return count
    return int(min(count, max(LEAST_NETWORK_QUERIES, bias.pairs_at_once / max(1, maps * groups * keys))))


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


def _through_softmax(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient before a softmax, in place of that after it."""
    changed: Tensor = torch.ops.aten._softmax_backward_data.out(
        gradient, weights, -1, weights.dtype, grad_input=gradient
    )
    return changed
