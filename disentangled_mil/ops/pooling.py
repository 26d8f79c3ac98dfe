"""Means over the real tokens of a bag."""

import torch
from torch import Tensor

from .._precision import wide_dtype


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each bag.

    Args:
        tokens: token features. Padding may hold any value, even NaN.
        mask: mask of the tokens (True = real token).

    Shape:
        ``tokens`` [B, N, C], ``mask`` [B, N].

    Returns:
        The means [B, C]; zeros for a bag without real tokens.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.pooling import masked_mean
        >>> masked_mean(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
        [[3.0]]
    """
    wide = wide_dtype(tokens)  # a sum of thousands of tokens overflows float16
    total = torch.where(mask[..., None], tokens, 0).sum(1, dtype=wide)
    return (total / mask.sum(1).clamp(min=1)[:, None]).to(tokens.dtype)
