"""Arithmetic of discrete survival times, from hazard logits and in the logarithm.

*What is computed.* The hazard of interval k is ``h(k) = sigmoid(logits[k])``, the probability of the event in interval
k for a patient who entered it. Survival is a product of ``1 - h``. Its logarithm is a sum of
``logsigmoid(-logits)``. It does not underflow, and it keeps its gradient.

*What it costs.* O(K) operations per sample. Autograd differentiates the sums.
"""

import torch.nn.functional as F
from torch import Tensor

from .._checks import check_floating
from .._precision import widened


def log_survival(logits: Tensor) -> Tensor:
    """Log probability of survival through each interval, ``log S(k) = sum_{j <= k} log(1 - h(j))``.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        ``log S`` [..., K], in float32, or in float64 for float64 input.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no interval.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.hazards import log_survival
        >>> log_survival(torch.zeros(3)).exp()
        tensor([0.5000, 0.2500, 0.1250])
    """
    return F.logsigmoid(-_wide(logits)).cumsum(-1)


def outcome_log_probability(logits: Tensor) -> Tensor:
    """Log probability of every outcome: the event in each of the K intervals, and at last survival of all of them.

    ``log P(k) = log h(k) + log S(k - 1)`` and ``log P(K) = log S(K - 1)``, with intervals counted from 0 and
    ``S(-1) = 1``. The probabilities of a sample sum to 1.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        ``log P`` [..., K + 1], in float32, or in float64 for float64 input.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no interval.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.hazards import outcome_log_probability
        >>> outcome_log_probability(torch.zeros(3)).exp()
        tensor([0.5000, 0.2500, 0.1250, 0.1250])
    """
    entered = F.pad(log_survival(logits), (1, 0))  # [..., K + 1]
    return entered + F.pad(F.logsigmoid(_wide(logits)), (0, 1))


def risk(logits: Tensor) -> Tensor:
    """Risk that ranks the patients, ``-sum_k S(k)``; higher = worse.

    ``sum_k S(k)`` is the expected number of intervals that a patient survives.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        The risk [...], between -K and 0, in float32, or in float64 for float64 input.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no interval.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.hazards import risk
        >>> risk(torch.zeros(2, 3))
        tensor([-0.8750, -0.8750])
    """
    return -log_survival(logits).exp().sum(-1)


def _wide(logits: Tensor) -> Tensor:
    """Hazard logits in at least float32, because sums of logarithms are inaccurate in half precision."""
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., K] with K >= 1, got {list(logits.shape)}")
    return widened(logits)
