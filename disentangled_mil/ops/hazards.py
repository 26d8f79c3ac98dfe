"""Discrete-time survival arithmetic that starts from hazard logits and never leaves the logarithm.

The hazard of interval k is ``h(k) = sigmoid(logits[k])``: the probability of dying in interval k for whoever
entered it. Products of ``1 - h`` are sums of ``logsigmoid(-logits)``, which neither underflow nor lose their
gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from .._checks import check_floating
from .._precision import widened


def log_survival(logits: Tensor) -> Tensor:
    """Log probability of surviving each interval, ``log S(k) = sum_{j <= k} log(1 - h(j))``.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        ``log S`` [..., K], in float32 or, for float64 input, float64.

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
    """Log probability of every outcome: death in interval k, and, last, survival of all K intervals.

    ``log P(k) = log h(k) + log S(k - 1)`` and ``log P(K) = log S(K - 1)``, intervals counted from 0 and
    ``S(-1) = 1``; the probabilities of one sample sum to 1.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        ``log P`` [..., K + 1], in float32 or, for float64 input, float64.

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
    """One number per sample by which patients are ranked, ``-sum_k S(k)``; higher = worse.

    ``sum_k S(k)`` is the expected number of intervals survived.

    Args:
        logits: hazard logits.

    Shape:
        ``logits`` [..., K].

    Returns:
        The risk [...], between -K and 0, in float32 or, for float64 input, float64.

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
    """Hazard logits in at least float32: sums of logarithms are not for half precision."""
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., K] with K >= 1, got {list(logits.shape)}")
    return widened(logits)
