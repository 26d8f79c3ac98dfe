"""The attention weights of one bag, a tile of queries at a time, and the gradient of their scores.

Softmax turns scores S into weights W. The gradient dW of the weights gives that of the scores,
``dS = W (dW - sum_j W dW)``. From it follow ``dQ = scale dS K`` and ``dK = scale dS^T Q``. The sum of dS over queries
and over the heads of a group is the gradient of the key logits. dS itself is that of each pair's bias, which the bias
passes back to its parameters and to the positions. The backward pass computes a tile's weights again, unless they were
kept.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._precision import wide_dtype
from .._tile_size import tile_size
from ..position_bias import BiasTile, BiasWanted, TiledBias
from ._carried import CarriedScores

# Entries of heads x queries x keys in a tile, so that several such matrices fit into a core's cache.
ENTRIES = 1 << 18
# A tile has at least this many queries, because smaller products are slow.
LEAST_QUERIES = 32
# Where a bias limits the size of tiles, a tile still has at least this many queries.
LEAST_QUERIES_OF_BIAS = 8


class BagScores:
    """The scores of one bag. It uses n of the N queries and j of the J keys.

    Args:
        carried: scores of the whole batch.
        bias: position bias of the whole batch.
        bag: index of the bag.
    """

    def __init__(self, carried: CarriedScores, bias: TiledBias | None, bag: int) -> None:
        self.wide = wide_dtype(carried.query)
        self.bag, self.bias, self.scale = bag, bias, carried.scale
        mask, logit = carried.mask[bag], carried.logit[bag]
        # Padded queries and keys that no group sees are left out.
        self.rows, self.columns = _where(mask), _where((logit != -math.inf).any(0))
        self.query = take(carried.query[bag], 1, self.rows)  # [H, n, D]
        self.scaled_key = take(carried.key[bag], 1, self.columns).to(self.wide) * carried.scale  # [H, j, D]
        # These are copies, because _move_nan overwrites NaN. contiguous() may keep odd strides in dimensions of size 1,
        # which view_as_complex in TiledTable.tile refuses; clone() does not.
        self.query_position, self.key_position = (
            position.to(self.wide).clone(memory_format=torch.contiguous_format)
            for position in (
                take(carried.query_position[bag], 0, self.rows),
                take(carried.key_position[bag], 1, self.columns),
            )
        )  # [n, 2], [G, j, 2]
        logit = take(logit, 1, self.columns).to(self.wide)
        self.heads, (self.groups, keys) = len(self.query), logit.shape
        # Both passes must use equal tiles, because dropout is drawn tile by tile.
        self.queries_at_once = queries_at_once(self.query, self.groups, keys, bias)
        if bias is not None:
            logit = self._move_nan(logit)
        self.logit, self.with_keys = self._finite_logits(logit)  # [H, 1, j], [H, 1, 1]

    def _move_nan(self, logit: Tensor) -> Tensor:
        """Replace NaN positions by 0 and make their scores NaN. Returns the key logits [G, J]."""
        # Tables must not be read at NaN.
        if (of_query := self.query_position.isnan().any(-1, keepdim=True)).any():
            self.query = self.query.masked_fill(of_query, math.nan)
            self.query_position.nan_to_num_(0, math.inf, -math.inf)
        if (of_key := self.key_position.isnan().any(-1)).any():
            logit = logit.masked_fill(of_key, math.nan)
            self.key_position.nan_to_num_(0, math.inf, -math.inf)
        return logit

    def _finite_logits(self, logit: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Key logits [G, J] by head, and whether a head has keys; None where they would change nothing."""
        empty = (logit == -math.inf).all(-1, keepdim=True)
        # The softmax of a head without keys must be finite, also in its gradient. So its logits are replaced by 0, and
        # `weights` sets its weights to zero.
        finite = self._per_head(logit.masked_fill(empty, 0)) if (logit != 0).any() else None
        return finite, self._per_head(~empty) if empty.any() else None

    def tiles(self) -> Iterator[slice]:
        """The bag's queries in tiles."""
        count = self.query.shape[1]
        for start in range(0, count, self.queries_at_once):
            yield slice(start, min(start + self.queries_at_once, count))

    def biases(self, tile: slice) -> BiasTile | None:
        """The biases of a tile, if there are any."""
        if self.bias is None or self.key_position.shape[1] == 0:
            return None
        return self.bias.tile(self.query_position[tile], self.key_position)

    def weights(self, tile: slice, biases: BiasTile | None) -> Tensor:
        """The softmax of a tile's scores [H, t, J]; zeros for heads without keys."""
        query, key = self.query[:, tile].to(self.wide), self.scaled_key.transpose(1, 2)
        scores = query @ key if biases is None else biases.values().flatten(0, 1).baddbmm_(query, key)
        if self.logit is not None:
            scores += self.logit
        weights = scores.softmax(-1)
        if self.with_keys is not None:
            weights *= self.with_keys
        return weights

    def read(self, tensor: Tensor, tile: slice, *, keys: bool = False) -> Tensor:
        """A tile of a tensor of the bag [H, N, ...]; with ``keys`` it is [H, N, J], and its used keys are returned."""
        rows = tensor[:, tile] if self.rows is None else tensor.index_select(1, self.rows[tile])
        return take(rows, 2, self.columns) if keys else rows

    def write(self, values: Tensor, target: Tensor, tile: slice) -> None:
        """Write the values of a tile to its rows in a tensor of the bag [H, N, ...]."""
        if self.rows is None:
            target[:, tile] = values
        else:
            target.index_copy_(1, self.rows[tile], values.to(target.dtype))

    def _per_head(self, grouped: Tensor) -> Tensor:
        return grouped.repeat_interleave(self.heads // self.groups, dim=0)[:, None]


class BagGradient:
    """The gradient of one bag's scores, added up tile by tile.

    Args:
        scores: scores of the bag.
        wanted: scores with a bool in place of every tensor: True = its gradient is needed.
        target: gradient of the whole batch, in which that of the bag is still zero. Each tile writes the
            gradient of its queries there directly, because a buffer would take much memory; :meth:`finish` writes the
            sums.
    """

    def __init__(self, scores: BagScores, wanted: CarriedScores, target: CarriedScores) -> None:
        self.scores, self.target = scores, target
        self.want_logit = bool(wanted.logit)
        self.wanted_of_bias = BiasWanted(
            any(wanted.bias.tensors), bool(wanted.query_position), bool(wanted.key_position)
        )
        self.key = torch.zeros_like(scores.scaled_key)  # [H, J, D]
        self.query_position = torch.zeros_like(scores.query_position)  # [N, 2]
        self.key_position = torch.zeros_like(scores.key_position)  # [G, J, 2]
        self.logit = torch.zeros_like(scores.scaled_key[..., 0])  # [H, J]

    def add(self, tile: slice, grad_scores: Tensor, biases: BiasTile | None) -> None:
        """Add the gradients that a tile passes back.

        Args:
            tile: queries of the tile.
            grad_scores: gradient of the scores [H, t, J].
            biases: biases of the tile; None if they have to be computed, or if there are none.
        """
        scores = self.scores
        scores.write(grad_scores @ scores.scaled_key, self.target.query[scores.bag], tile)
        self.key.baddbmm_(grad_scores.transpose(1, 2), scores.query[:, tile].to(scores.wide))
        if self.want_logit:
            self.logit += grad_scores.sum(1)
        if not any(self.wanted_of_bias):
            return
        if biases := biases or scores.biases(tile):
            per_group = grad_scores.view(scores.groups, scores.heads // scores.groups, *grad_scores.shape[1:])
            queries, keys = biases.backward(per_group, self.wanted_of_bias)
            if queries is not None:
                self.query_position[tile] += queries
            if keys is not None:
                self.key_position += keys

    def finish(self) -> None:
        """Write the sums over tiles to the gradient of the batch, except for the bias."""
        scores, target, bag = self.scores, self.target, self.scores.bag
        tokens, keys = target.query.shape[2], target.key.shape[2]
        target.key[bag] = put(self.key * scores.scale, 1, scores.columns, keys)
        target.query_position[bag] = put(self.query_position, 0, scores.rows, tokens)
        target.key_position[bag] = put(self.key_position, 1, scores.columns, keys)
        per_group = self.logit.view(scores.groups, scores.heads // scores.groups, -1).sum(1)
        target.logit[bag] = put(per_group, 1, scores.columns, keys)


def queries_at_once(query: Tensor, groups: int, keys: int, bias: TiledBias | None) -> int:
    """The number of queries [H, N, D] in a tile."""
    count = max(LEAST_QUERIES, tile_size(ENTRIES, query.device) // max(1, len(query) * keys))
    if bias is None:
        return count
    return int(min(count, max(LEAST_QUERIES_OF_BIAS, bias.most_pairs / max(1, groups * keys))))


def take(tensor: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """The entries at an index, or all of them."""
    return tensor if index is None else tensor.index_select(dim, index)


def put(tensor: Tensor, dim: int, index: Tensor | None, size: int) -> Tensor:
    """The transpose of :func:`take`: the entries at their indices in a dimension of ``size``, zeros elsewhere."""
    if index is None:
        return tensor
    shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
    return tensor.new_zeros(shape).index_copy_(dim, index, tensor)


def _where(mask: Tensor) -> Tensor | None:
    """The indices where a mask is True; None if it is True everywhere."""
    return None if mask.all() else mask.nonzero().squeeze(1)
