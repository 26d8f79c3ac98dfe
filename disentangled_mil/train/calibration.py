"""Calibration of logits by one temperature."""

import math

from scipy.optimize import minimize_scalar
from torch import Tensor

from .._checks import check_floating, check_shape, check_type
from ..tasks import Target, Task

LIMITS = (0.05, 20.0)


def fit_temperature(task: Task, logits: Tensor, target: Target) -> float:
    r"""The temperature with which logits fit labels best.

    .. math:: \arg\min_T \mathrm{loss}(\mathrm{logits} / T, \mathrm{target})

    Use logits of samples that the model has not seen. A temperature above 1 means that the model was too confident.
    For numbers, whose link is the identity, it shrinks the predictions towards the mean.

    Args:
        task: task whose loss is minimized; any kind.
        logits: logits of the samples.
        target: target of the task's loss.

    Shape:
        ``logits`` [n, K].

    Returns:
        The temperature, from 0.05 to 20.

    Source:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    Example:
        >>> import torch
        >>> from disentangled_mil import Classification
        >>> from disentangled_mil.train import fit_temperature
        >>> logits = torch.tensor([[2.0, 0.0]] * 4)  # three of four are right: log 3 = 1.0986 would be calibrated
        >>> round(fit_temperature(Classification(["a", "b"]), logits, torch.tensor([0, 0, 0, 1])), 3)
        1.82
    """
    check_type("task", task, Task, "a task")
    check_shape("logits", logits, "n K")
    check_floating("logits", logits)
    precise = logits.detach().double()

    def loss(log_temperature: float) -> float:
        return float(task.loss(precise / math.exp(log_temperature), target))

    found = minimize_scalar(loss, bounds=[math.log(limit) for limit in LIMITS], method="bounded")
    return math.exp(found.x)
