"""The selection layer: every patch attends to the gene tokens of a subspace."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

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
        tokens [B, N, C], genes [B, T, C], mask [B, N] (True = real token; without it all are real).

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
        normed = self.norm_genes(genes.to(dtype))
        selected, weights = self.attention(self.norm_tokens(tokens), normed, normed)
        feature = torch.tanh(self.pool(masked_mean(tokens + selected, mask)))
        return SelectionOutput(feature, weights * mask[..., None])

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return f"{self.pool.in_features}, heads={self.attention.num_heads}"
