"""The likelihood of discrete survival times."""

import math

import torch
from torch import Tensor

from .._checks import check_batch, check_choice, check_integers, check_interval, check_shape, check_values
from ..ops.hazards import log_survival, outcome_log_probability


def discrete_time_nll(
    logits: Tensor, interval: Tensor, *, event: Tensor, alpha: float = 0.0, reduction: str = "mean"
) -> Tensor:
    r"""Negative log-likelihood of discrete survival times that may be censored.

    With hazards :math:`h = \mathrm{sigmoid}(\mathrm{logits})` and survival :math:`S(k) = \prod_{j \le k} (1 - h(j))`:

    .. math::
        \mathrm{loss} = \begin{cases}
            -\log h(k) - \log S(k - 1) & \text{if the event was observed in interval } k \\
            -(1 - \alpha) \log S(k) & \text{if the time is censored in interval } k
        \end{cases}

    Args:
        logits: hazard logits.
        interval: interval of the last observation, from 0 to K - 1.
        event: 1 or True = the event was observed, 0 or False = the time is censored, in any type.
        alpha: share by which censored terms are reduced, from 0 to 1.
        reduction: reduction over the batch, ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        ``logits`` [B, K], ``interval`` [B], ``event`` [B].

    Returns:
        A scalar, or [B] for ``"none"``, in float32, or in float64 for float64 input.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor or ``interval`` not an integer one.
        ValueError: a shape differs, an option is out of range, or the batch is empty. On the CPU, also if an
            interval or an event is out of range. On a GPU values are not read: the interval then fails the kernel, and
            the event makes the loss NaN.

    Source:
        The survival loss of the paper, over hazards in quartile bins. The likelihood is that of Zadeh and Schmid, "Bias
        in Cross-Entropy-Based Training of Deep Survival Networks", IEEE TPAMI 2021.

    Differs from the source:
        The loss starts from logits and stays in the logarithm, where the usual code clamps probabilities. Its gradient
        therefore never vanishes, however confident a wrong prediction is. ``event`` replaces ``1 - event``.

    Example:
        >>> import torch
        >>> from disentangled_mil import discrete_time_nll
        >>> discrete_time_nll(torch.zeros(2, 4), torch.tensor([0, 2]), event=torch.tensor([True, False]))
        tensor(1.3863)
    """
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_interval("alpha", alpha, 0.0, 1.0)
    sizes = check_shape("logits", logits, "B K")
    check_shape("interval", interval, "B", sizes)
    check_shape("event", event, "B", sizes)
    check_batch("logits", logits)
    check_integers("interval", interval)
    interval = interval.long()
    last = sizes["K"] - 1
    check_values("interval", interval, f"be an index from 0 to {last}", lambda k: (k >= 0) & (k <= last))
    check_values("event", event, "be 0 (censored) or 1 (event observed)", lambda e: (e == 0) | (e == 1))
    k = interval[:, None]  # [B, 1]
    occurred = outcome_log_probability(logits).gather(1, k)[:, 0]  # [B]
    survived = log_survival(logits).gather(1, k)[:, 0]  # [B]
    loss = -torch.where(event == 1, occurred, (1 - alpha) * survived)
    if event.dtype != torch.bool:
        loss = loss * torch.ones_like(loss).masked_fill((event != 0) & (event != 1), math.nan)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
