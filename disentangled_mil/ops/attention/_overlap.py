"""Inner products of attention maps across a batch."""

import torch
from torch import Tensor

from ..._checks import check_floating, check_shape
from ..._precision import wide_dtype
from ._scores import AttentionScores


def attention_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every map of one batch with every map of another, ``C_ij = <a_i, b_j>``.

    Half precision is summed in float32, also inside an autocast region.

    Args:
        a: attention maps, flattened to one vector per sample.
        b: attention maps of the same length.

    Shape:
        ``a``, ``b`` [B, F].

    Returns:
        ``C`` [B, B], in at least float32.

    Raises:
        TypeError: an argument is not a floating-point tensor. Scores are turned into maps by their ``weights()``.
        ValueError: the shapes differ.

    Source:
        C in eq. 7 of the paper.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import attention_overlap
        >>> attention_overlap(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 3.],
                [2., 4.]])
    """
    for name, maps in (("a", a), ("b", b)):
        if isinstance(maps, AttentionScores):
            raise TypeError(
                f"{name} must be a tensor [B, F], got AttentionScores; scores.weights().flatten(1) gives their maps"
            )
    sizes = check_shape("a", a, "B F")
    check_shape("b", b, "B F", sizes)
    check_floating("a", a)
    check_floating("b", b)
    dtype = wide_dtype(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype).T
