"""The selection layer: every patch attends to the gene tokens of a subspace."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .._checks import check_count, check_floating, check_mask, check_shape
from ..ops.pooling import masked_mean


class SelectionOutput(NamedTuple):
    """The result of :class:`GeneSelection`.

    Attributes:
        feature: vector of the subspace [B, C], in (-1, 1).
        weights: attention of every patch over the gene tokens, averaged over the heads [B, N, T]; zero for padding.
    """

    feature: Tensor
    weights: Tensor


class GeneSelection(nn.Module):
    r"""Attention from patches to genes, then one vector per bag.

    .. math::
        y = x + \mathrm{MHA}(\mathrm{LN}(x), \mathrm{LN}(\mathrm{genes})), \qquad
        \mathrm{feature} = \tanh(\mathrm{Linear}(\operatorname{mean}_{\text{real tokens}} y))

    Use several gene tokens: with one, the softmax runs over a single key and selects nothing.

    Args:
        dim: width C of a token.
        heads: number of attention heads, which divides ``dim``.

    Shape:
        ``tokens`` [B, N, C], ``genes`` [B, T, C], ``mask`` [B, N] (True = real token; without it all are real).

    Returns:
        A :class:`SelectionOutput`.

    Raises:
        TypeError: tokens or genes are not floating-point, or the mask is not bool.
        ValueError: shapes disagree.

    Source:
        Equations 4-5 of the paper.

    Example:
        >>> import torch
        >>> from disentangled_mil import GeneSelection
        >>> select = GeneSelection(16, heads=4)
        >>> out = select(torch.randn(2, 9, 16), torch.randn(2, 3, 16))
        >>> out.feature.shape, out.weights.shape
        (torch.Size([2, 16]), torch.Size([2, 9, 3]))
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("heads", heads)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
        self.norm_tokens = nn.LayerNorm(dim)
        self.norm_genes = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.pool = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, genes: Tensor, mask: Tensor | None = None) -> SelectionOutput:
        """Attend from every patch to the genes, and pool."""
        sizes = check_shape("tokens", tokens, "B N C", {"C": self.pool.in_features})
        check_shape("genes", genes, "B T C", sizes)
        check_floating("tokens", tokens)
        check_floating("genes", genes)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        check_mask("mask", mask, "B N", sizes)
        dtype = self.pool.weight.dtype
        tokens = torch.where(mask[..., None], tokens, 0).to(dtype)
        key, value = self._keys_and_values(self.norm_genes(genes.to(dtype)))  # [B, T, H, D]
        weights = self._logits(self.norm_tokens(tokens), key).softmax(-1)  # [B, N, H, T]
        # Values and output projection are linear, so the weights can be averaged over tokens first. With the logits
        # below, forward and backward take 0.4 of the time of nn.MultiheadAttention (one CPU thread, 2,500 tokens,
        # C = 256, T = 4).
        mean_weights = torch.unflatten(masked_mean(weights.flatten(2), mask), 1, weights.shape[2:])  # [B, H, T]
        selected = self.attention.out_proj(torch.einsum("bht,bthd->bhd", mean_weights, value).flatten(1))
        selected = torch.where(mask.any(1, keepdim=True), selected, 0)
        feature = torch.tanh(self.pool(masked_mean(tokens, mask) + selected))
        return SelectionOutput(feature, weights.mean(2) * mask[..., None])

    def _keys_and_values(self, genes: Tensor) -> tuple[Tensor, Tensor]:
        """Project genes [B, T, C] to keys and values [B, T, H, D]."""
        width = self.pool.in_features
        weight, bias = self.attention.in_proj_weight[width:], self.attention.in_proj_bias[width:]
        key, value = torch.unflatten(linear(genes, weight, bias), 2, (2, self.attention.num_heads, -1)).unbind(2)
        return key, value

    def _logits(self, tokens: Tensor, key: Tensor) -> Tensor:
        """The logits of tokens [B, N, C] and keys [B, T, H, D] -> [B, N, H, T]."""
        # q . k = x . (W k) + b . k, so that queries cost N C H T instead of N C^2, less while T < C / H.
        width, key = self.pool.in_features, key * key.shape[3] ** -0.5
        weight, bias = (
            torch.unflatten(part[:width], 0, key.shape[2:])
            for part in (self.attention.in_proj_weight, self.attention.in_proj_bias)
        )  # [H, D, C], [H, D]
        slope = torch.einsum("hdc,bthd->bcht", weight, key)
        constant = torch.einsum("hd,bthd->bht", bias, key)
        return torch.unflatten(tokens @ slope.flatten(2), 2, slope.shape[2:]) + constant[:, None]

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return f"{self.pool.in_features}, heads={self.attention.num_heads}"
