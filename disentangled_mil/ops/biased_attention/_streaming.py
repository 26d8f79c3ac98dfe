"""Biased attention over tiles of queries: the same numbers, one tile of the matrix in memory at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._reference import reference

# Entries of the query x key matrix (over batch and heads) that one tile may hold.
TILE = 1 << 20


def streaming(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    bias: Callable[[Tensor], Tensor] | None,
    key_logit: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """softmax(Q K^T scale + bias + key_logit) V; the backward pass recomputes each tile."""
    batch, heads, tokens, _ = query.shape
    rows = max(1, TILE // max(1, batch * heads * key.shape[2]))
    tiles = []
    for start in range(0, max(1, tokens), rows):
        tile = slice(start, start + rows)
        arguments = (query[:, :, tile], key, value, query_position[:, tile], key_position)
        tiles.append(checkpoint(reference, *arguments, bias, key_logit, scale, dropout, use_reentrant=False))
    return torch.cat(tiles, dim=2)
