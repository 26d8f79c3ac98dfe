"""The linear floor: a linear model on the mean patch of every sample, which every network should reach."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tasks import Target, Task
from .datasets import CohortDataset

COMPONENTS = 20
PENALTY = 0.05


class LinearModel(NamedTuple):
    """Logits that are linear in the features.

    Attributes:
        weight: weight of every feature [P, K], float64.
        bias: logits of a sample whose features are 0 [K], float64.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, K] of features [n, P]."""
        return (features.double() @ self.weight + self.bias).float()


def mean_features(dataset: CohortDataset) -> Tensor:
    """The mean patch of every sample, its magnifications side by side [n, P]."""
    rows = []
    for number in range(len(dataset)):
        bags = dataset.batch([number]).bags.values()
        rows.append(torch.cat([bag.patches[bag.mask].double().mean(0) for bag in bags]))
    return torch.stack(rows)


def fit_linear(
    features: Tensor, target: Target, task: Task, *, components: int = COMPONENTS, penalty: float = PENALTY
) -> LinearModel:
    """Fit a linear model on principal components of standardized features, with the task's own loss.

    ``minimize loss(Z W + b) + penalty / 2 * sum(W^2)``; the components Z have the variance of the first one divided
    out.

    Args:
        features: features of the training samples.
        target: target of the task's loss.
        task: task, of any kind.
        components: largest number of principal components.
        penalty: weight of the ridge penalty.

    Shape:
        ``features`` [n, P].

    Returns:
        The model, which takes features.
    """
    values = features.double()
    center, std = values.mean(0), values.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    _, singular, axes = torch.linalg.svd((values - center) / std, full_matrices=False)
    scale = float(singular[0]) / math.sqrt(max(1, len(values) - 1)) or 1.0
    project = axes[:components].T / std[:, None] / scale  # [P, components]
    inputs = (values - center) @ project
    weight = torch.zeros(inputs.shape[1], task.outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(task.outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(inputs @ weight + bias, target) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    whole = project @ weight.detach()
    return LinearModel(whole, bias.detach() - center @ whole)
