"""Attention with a bias that is a function of the displacement between query and key."""

from collections.abc import Callable

from torch import Tensor

from ..._checks import check_choice, check_interval, check_shape
from ._reference import dense_weights, reference
from ._streaming import TILE, streaming

__all__ = ["biased_attention", "biased_attention_weights"]


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    *,
    bias: Callable[[Tensor], Tensor] | None = None,
    key_logit: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attend with a position bias: softmax(Q K^T scale + bias(q_pos - k_pos) + key_logit) V.

    Keys lie in groups of heads: head h belongs to group h // (H / G).

    Args:
        query: queries.
        key: keys.
        value: values.
        query_position: (x, y) of every query, normalised coordinates.
        key_position: (x, y) of every key, per group.
        bias: maps displacements [..., 2] to biases of the H / G heads of a group; None for no bias.
        key_logit: added to every logit of a key; -inf takes the key out.
        scale: of Q K^T; D ** -0.5 by default.
        dropout: probability of dropping an attention weight.
        backend: ``"reference"`` keeps the N x J matrix, ``"streaming"`` one tile of it; ``"auto"`` streams as
            soon as the matrix is larger than one tile. An explicit choice is never replaced.

    Shape:
        ``query`` [B, H, N, D], ``key`` and ``value`` [B, H, J, D], ``query_position`` [B, N, 2],
        ``key_position`` [B, G, J, 2], ``key_logit`` [B, G, J].

    Returns:
        [B, H, N, D]; zeros for a query that has no key left.

    Raises:
        ValueError: shapes disagree, H is not a multiple of G, or an option is unknown.

    Source: eqs 1-3 of the paper; deformable attention of DAT (Xia et al., CVPR 2022).

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import biased_attention
        >>> q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)
        >>> biased_attention(q, k, v, torch.rand(2, 9, 2), torch.rand(2, 4, 3, 2)).shape
        torch.Size([2, 4, 9, 8])
    """
    _check(query, key, query_position, key_position, key_logit)
    check_shape("value", value, "B H J D", dict(zip("BHJD", key.shape, strict=True)))
    check_choice("backend", backend, ("auto", "reference", "streaming"))
    check_interval("dropout", dropout, 0, 1)
    if backend == "auto":
        batch, heads, tokens, _ = query.shape
        backend = "streaming" if batch * heads * tokens * key.shape[2] > TILE else "reference"
    attend = streaming if backend == "streaming" else reference
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attend(query, key, value, query_position, key_position, bias, key_logit, scale, dropout)


def biased_attention_weights(
    query: Tensor,
    key: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    *,
    bias: Callable[[Tensor], Tensor] | None = None,
    key_logit: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The dense weights of :func:`biased_attention`: softmax(Q K^T scale + bias(q_pos - k_pos) + key_logit).

    Args: as :func:`biased_attention`.

    Returns:
        [B, H, N, J] in float32 or wider; every row sums to one, or to zero where no key is left.

    Raises:
        ValueError: shapes disagree, or H is not a multiple of G.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import biased_attention_weights
        >>> q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 3, 8)
        >>> biased_attention_weights(q, k, torch.rand(2, 9, 2), torch.rand(2, 4, 3, 2)).sum(-1).allclose(torch.ones(1))
        True
    """
    _check(query, key, query_position, key_position, key_logit)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return dense_weights(query, key, query_position, key_position, bias, key_logit, scale)


def _check(query: Tensor, key: Tensor, query_position: Tensor, key_position: Tensor, key_logit: Tensor | None) -> None:
    sizes = check_shape("query", query, "B H N D")
    sizes |= check_shape("key", key, "B H J D", sizes)
    check_shape("query_position", query_position, "B N 2", sizes)
    sizes |= check_shape("key_position", key_position, "B G J 2", sizes)
    if sizes["H"] % sizes["G"]:
        raise ValueError(f"key_position must have a number of groups G that divides H = {sizes['H']}, got {sizes['G']}")
    if key_logit is not None:
        check_shape("key_logit", key_logit, "B G J", sizes)
