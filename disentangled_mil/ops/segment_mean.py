"""Weighted means of a bag's tokens per segment, and the softmax that makes such weights from logits.

*What is computed.* A segment is a set of tokens of a bag, such as a cluster. Its mean is a product of the weights
[K, N] of the segments, zero outside of them, with the tokens [N, C].

*What its backward is.* Autograd differentiates the product, which is one product for each of its factors.

*What it costs.* O(N K C) operations and N K numbers per bag. K is small here, so this is faster than a scatter, and the
sums have the same order every time.
"""

import torch
from torch import Tensor

from .._checks import check_count, check_floating, check_interval, check_shape, check_weights
from .._precision import wide_dtype

__all__ = ["segment_mean", "segment_softmax"]


def segment_mean(
    tokens: Tensor, assignment: Tensor, segments: int, *, weight: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    r"""Average the tokens of every segment.

    .. math:: m_k = \frac{\sum_{i : a_i = k} w_i z_i}{\sum_{i : a_i = k} w_i}

    Half precisions are summed in float32.

    Args:
        tokens: tokens. A token of no segment may hold any value, even NaN.
        assignment: segment of each token. A token outside 0 ... ``segments`` - 1, such as -1, is in none.
        segments: number of segments K.
        weight: weights, not negative. Only their ratios within a segment matter. Without it all weights are equal.
        eps: number that is added to the sum of the weights of a segment. The released code has 1e-6, which moves the
            means slightly toward zero.

    Shape:
        ``tokens`` [B, N, C], ``assignment`` [B, N], ``weight`` [B, N].

    Returns:
        The means [B, K, C]; zero for a segment without tokens or without weight.

    Raises:
        TypeError: ``tokens`` or ``weight`` is not floating-point, ``assignment`` is not int64, or ``segments`` is no
            integer.
        ValueError: a shape is not as described, ``segments`` is less than 1, ``eps`` is negative, or so is a weight
            on the CPU.

    Source:
        Equation 12 of the paper.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import segment_mean
        >>> tokens = torch.tensor([[[1.0], [3.0], [8.0], [torch.nan]]])
        >>> segment_mean(tokens, torch.tensor([[0, 0, 1, -1]]), 3).tolist()
        [[[2.0], [8.0], [0.0]]]
    """
    sizes = check_shape("tokens", tokens, "B N C")
    check_floating("tokens", tokens)
    check_interval("eps", eps, 0, float("inf"))
    if weight is not None:
        check_shape("weight", weight, "B N", sizes)
        check_floating("weight", weight)
    member = _membership(assignment, segments, sizes)  # [B, K, N]
    with torch.autocast(tokens.device.type, enabled=False):
        dtype = wide_dtype(tokens)
        share = member.to(dtype)
        if weight is not None:
            share = weight.to(dtype)[:, None].where(member, 0)  # [B, K, N]
            check_weights("weight", share)
        kept = tokens.to(dtype).where(member.any(1)[..., None], 0)  # [B, N, C]
        total = share.sum(2, keepdim=True) + eps  # [B, K, 1]
        return (share @ kept / total.where(total != 0, 1)).to(tokens.dtype)


def segment_softmax(logits: Tensor, assignment: Tensor, segments: int) -> Tensor:
    r"""Softmax of the logits within every segment.

    .. math:: w_i = \frac{e^{l_i}}{\sum_{j : a_j = a_i} e^{l_j}}

    It is differentiable and does not overflow. Half precisions are computed in float32.

    Args:
        logits: logits. A token of no segment may hold any value, even NaN.
        assignment: segment of each token. A token outside 0 ... ``segments`` - 1, such as -1, is in none.
        segments: number of segments K.

    Shape:
        ``logits`` [B, N], ``assignment`` [B, N].

    Returns:
        Weights [B, N] that sum to one in every segment that has tokens. They are zero for tokens of no segment.

    Raises:
        TypeError: ``logits`` is not floating-point, ``assignment`` is not int64, or ``segments`` is no integer.
        ValueError: a shape is not as described, or ``segments`` is less than 1.

    Source:
        The merge weights exp(Linear(z)) of equation 12 of the paper, normalized.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import segment_softmax
        >>> logits = torch.tensor([[900.0, 900.0, -900.0, torch.nan]])
        >>> segment_softmax(logits, torch.tensor([[0, 0, 1, -1]]), 2).tolist()
        [[0.5, 0.5, 1.0, 0.0]]
    """
    sizes = check_shape("logits", logits, "B N")
    check_floating("logits", logits)
    member = _membership(assignment, segments, sizes)  # [B, K, N]
    dtype = wide_dtype(logits)
    # With the lowest finite number instead of -inf, the softmax of a segment without tokens is not NaN.
    own = logits.to(dtype)[:, None].where(member, torch.finfo(dtype).min)  # [B, K, N]
    return own.softmax(2).where(member, 0).sum(1).to(logits.dtype)


def _membership(assignment: Tensor, segments: int, sizes: dict[str, int]) -> Tensor:
    """Whether a token is in a segment [B, K, N]."""
    check_shape("assignment", assignment, "B N", {"B": sizes["B"], "N": sizes["N"]})
    if assignment.dtype != torch.int64:
        raise TypeError(f"assignment must be an int64 tensor (-1 = in no segment), got {assignment.dtype}")
    check_count("segments", segments)
    return assignment[:, None] == torch.arange(segments, device=assignment.device)[:, None]
