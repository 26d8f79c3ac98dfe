"""Inner products of attention maps across a batch."""

import torch
from torch import Tensor

from ..._checks import check_floating, check_shape
from ..._precision import wide_dtype
from ._overlap_streaming import streaming
from ._scores import AttentionScores, choose_backend


def attention_overlap(a: Tensor | AttentionScores, b: Tensor | AttentionScores) -> Tensor:
    """Inner product of every map of one batch with every map of another, ``C_ij = <a_i, b_j>``.

    Half precision is summed in float32, also inside an autocast region.

    Args:
        a: attention maps, flattened to one vector per sample; or scores, whose maps are computed one tile at a time,
            once forward and once backward.
        b: attention maps of the same length; or scores of the same shape.

    Shape:
        ``a``, ``b`` [B, F], or scores with equal B, H, N and J.

    Returns:
        ``C`` [B, B], in at least float32.

    Raises:
        TypeError: an argument is not a floating-point tensor, or only one is a tensor.
        ValueError: the shapes differ.
        NotImplementedError: in forward mode, or in the backward pass for a gradient of a gradient, of scores.

    Source:
        C in eq. 7 of the paper.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import attention_overlap
        >>> attention_overlap(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 3.],
                [2., 4.]])
    """
    if isinstance(a, AttentionScores) and isinstance(b, AttentionScores):
        return _of_scores(a, b)
    if isinstance(a, AttentionScores) or isinstance(b, AttentionScores):
        raise TypeError(f"a and b must both be tensors or both scores, got {type(a).__name__} and {type(b).__name__}")
    sizes = check_shape("a", a, "B F")
    check_shape("b", b, "B F", sizes)
    check_floating("a", a)
    check_floating("b", b)
    dtype = wide_dtype(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype).T


def _of_scores(a: AttentionScores, b: AttentionScores) -> Tensor:
    sizes = check_shape("a.key", a.key, "B H J D")
    check_shape("b.key", b.key, "B H J E", {letter: sizes[letter] for letter in "BHJ"})
    check_shape("b.query", b.query, "B H N E", {"N": a.query.shape[2]})
    if "reference" in (choose_backend("auto", a), choose_backend("auto", b)):
        return attention_overlap(a.weights().flatten(1), b.weights().flatten(1))
    return streaming(a.carried(), b.carried())
