"""Biased attention with all its matrices: short, readable, the oracle of the other implementations."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor


def dense_weights(
    query: Tensor,
    key: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    bias: Callable[[Tensor], Tensor] | None,
    key_logit: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(Q K^T scale + bias(q_pos - k_pos) + key_logit) [B, H, N, J]; zeros where no key is left."""
    wide = torch.promote_types(query.dtype, torch.float32)
    # Scaled before the product, which could overflow float16.
    logits = torch.einsum("bhnd,bhjd->bhnj", query * scale, key).to(wide)  # [B, H, N, J]
    if bias is not None:
        displacement = query_position[:, None, :, None] - key_position[:, :, None]  # [B, G, N, J, 2]
        logits = logits + rearrange(bias(displacement).to(wide), "b g n j i -> b (g i) n j")
    if key_logit is None:
        return logits.softmax(-1)
    logits = logits + _per_head(key_logit, logits.shape[1])[:, :, None]
    # A row without any key: softmax over zeros, then nothing, so that neither value nor gradient is NaN.
    blocked = logits == -torch.inf
    empty = blocked.all(-1, keepdim=True)
    return logits.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def reference(
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
    """softmax(Q K^T scale + bias + key_logit) V with the N x J matrix in memory."""
    weights = dense_weights(query, key, query_position, key_position, bias, key_logit, scale)
    weights = torch.nn.functional.dropout(weights, dropout)
    return torch.einsum("bhnj,bhjd->bhnd", weights.to(value.dtype), value)


def _per_head(grouped: Tensor, heads: int) -> Tensor:
    """Repeat [B, G, J] for the heads of each group -> [B, H, J]; head h belongs to group h // (H / G)."""
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)
