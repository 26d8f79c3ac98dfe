"""Biased attention with all its matrices: short and readable, the oracle of the other implementations."""

import torch
from einops import rearrange
from torch import Tensor

from ..._precision import wide_dtype
from ..position_bias import Bias


def dense_weights(
    *,
    query: Tensor,
    key: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    bias: Bias,
    key_logit: Tensor | None,
    query_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax(Q K^T scale + bias(q_pos - k_pos) + key_logit) [B, H, N, J]; zeros where no key is left."""
    wide = wide_dtype(query)
    if query_mask is not None:
        query = torch.where(query_mask[:, None, :, None], query, 0)
        query_position = torch.where(query_mask[..., None], query_position, 0)
    # Scaled before the product, which could overflow float16.
    logits = torch.einsum("bhnd,bhjd->bhnj", query * scale, key).to(wide)  # [B, H, N, J]
    if bias is not None:
        displacement = query_position[:, None, :, None] - key_position[:, :, None]  # [B, G, N, J, 2]
        logits = logits + rearrange(bias(displacement).to(wide), "b g n j i -> b (g i) n j")
    if key_logit is None:
        weights = logits.softmax(-1)
    else:
        logits = logits + _per_head(key_logit, logits.shape[1])[:, :, None]
        # A row without keys is a softmax over zeros that is then set to zero, so that no value or gradient is NaN.
        blocked = logits == -torch.inf
        empty = blocked.all(-1, keepdim=True)
        weights = logits.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    return weights if query_mask is None else weights * query_mask[:, None, :, None]


def reference(weights: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Output and mass of the keys, from the N x J matrix."""
    dropped = torch.nn.functional.dropout(weights, dropout)
    return torch.einsum("bhnj,bhjd->bhnd", dropped.to(value.dtype), value), weights.sum(2)


def _per_head(grouped: Tensor, heads: int) -> Tensor:
    """Repeat [B, G, J] for the heads of each group -> [B, H, J]; head h belongs to group h // (H / G)."""
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)
