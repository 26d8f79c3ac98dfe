"""The linear model of one split, with the loss of the task and a quadratic penalty that training patients choose.

The vectors of :class:`~disentangled_mil.LinearModel` are standardized and divided by the root of their widths. Patches
and genes have one penalty each. The penalized loss is convex and the fit starts at 0, so only the folds of the choice
have a seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..losses import DistillationTargets, prediction_distillation
from ..models import LinearModel
from ..models.linear_model import named_vectors
from ..tasks import Task, select_target
from .cross_fitting import Part
from .datasets import CohortDataset
from .inner_folds import over_folds

# Loss of logits [m, K] of the samples at rows [m], a scalar.
RowsLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
# Penalty of each kind of vectors, with which their names begin; infinity leaves them out.
Penalties: TypeAlias = Mapping[str, float]

# Kinds of vectors. Their penalties are chosen in this order.
SLIDES, GENES = ("mean", "deviation"), ("genes",)
BOTH = (*GENES, *SLIDES)
FOLDS = 5
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def vectors_of(dataset: CohortDataset, kinds: Sequence[str]) -> dict[str, Tensor]:
    """The vectors of all samples: statistics of their patches, expression, or both.

    Args:
        dataset: samples.
        kinds: kinds of vectors, ``SLIDES``, ``GENES`` or ``BOTH``.

    Returns:
        {name: [n, P]}.
    """
    patches = dataset.patch_statistics() if "mean" in kinds else {}
    return named_vectors(patches, dataset.genes if "genes" in kinds else {})


def task_loss_of(dataset: CohortDataset, task: Task) -> RowsLoss:
    """The task's loss of a dataset's samples."""
    return lambda logits, rows: task.loss(logits, select_target(dataset.target, rows))


def distilled_loss(
    loss: RowsLoss, targets: DistillationTargets, task: Task, weight: float, temperature: float
) -> RowsLoss:
    r"""The weighted mean :math:`(L + w D) / (1 + w)` of a loss L and the divergence D from a teacher's predictions.

    Args:
        loss: loss of the task.
        targets: targets of all samples, on the CPU.
        task: task, which says what the logits mean.
        weight: weight of the divergence.
        temperature: temperature that divides the logits of student and teacher.

    Returns:
        The loss.
    """

    def mixed(logits: Tensor, rows: Tensor) -> Tensor:
        chosen = targets.select(rows)
        divergence = prediction_distillation(
            logits, chosen.logits, temperature=temperature, link=task.link, weight=chosen.present
        )
        return (loss(logits, rows) + weight * divergence) / (1 + weight)

    return mixed


def fit_linear(
    vectors: Mapping[str, Tensor], rows: Tensor, loss: RowsLoss, outputs: int, penalties: Penalties
) -> LinearModel:
    r"""Fit a linear model on some samples.

    .. math:: \min_W \mathrm{loss}(\sum_v Z_v W_v + b) + \sum_v \lambda_v \lVert W_v \rVert^2

    :math:`Z_v` are the vectors of the fitted samples: standardized, missing values at the mean, divided by the root of
    their width. The model that is returned takes the vectors as they are.

    Args:
        vectors: vectors of all samples.
        rows: samples to fit on.
        loss: loss of logits.
        outputs: number of logits K.
        penalties: penalty of each kind of vectors; infinity leaves them out.

    Shape:
        ``vectors`` {name: [n, P]}, ``rows`` [m].

    Returns:
        The model, in float32, without gradients.
    """
    model = LinearModel({name: values.shape[1] for name, values in vectors.items()}, outputs).requires_grad_(False)
    scales, columns = {}, [torch.zeros(len(rows), 0, dtype=torch.float64)]
    for name, values in vectors.items():
        chosen = values[rows].double()
        center = chosen.nanmean(0).nan_to_num()
        apart = (chosen - center).nan_to_num()
        deviation = apart.square().mean(0).sqrt()
        model.get_buffer(f"center_{name}").copy_(center)
        penalty = next(value for key, value in penalties.items() if name.startswith(key))
        if math.isinf(penalty):
            continue
        # A column that varies by rounding only gets the weight 0.
        varies = deviation > 1e-6 * center.abs()
        scale = torch.where(varies, deviation.reciprocal(), 0) / math.sqrt(len(deviation) * penalty)
        scales[name] = scale
        columns.append(apart * scale)
    # The penalty is the same in any rotation, and on principal components there are at most m unknowns per logit.
    left, size, right = torch.linalg.svd(torch.cat(columns, 1), full_matrices=False)
    inputs = left * size
    weight = torch.zeros(len(size), outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(inputs @ weight + bias, rows) + weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    whole = (right.T @ weight.detach()).split([len(scale) for scale in scales.values()])
    for (name, scale), part in zip(scales.items(), whole, strict=True):
        model.weights[name].copy_((part * scale[:, None]).T)
    model.bias.copy_(bias.detach())
    return model


def choose_penalties(dataset: CohortDataset, task: Task, kinds: Sequence[str], *, seed: int) -> dict[str, float]:
    """Choose penalties by the loss out of fold, one kind of vectors after the other.

    Standard deviations have the penalty of the means or are left out; they are left out with the means.

    Args:
        dataset: training samples.
        task: task whose loss counts.
        kinds: kinds of vectors that the model sees; each penalty is chosen without the later kinds, and all but the
            first kind may be left out.
        seed: seed of the folds.

    Returns:
        The penalties for :func:`fit_linear`.

    Raises:
        ValueError: there is one patient only.
    """
    vectors, loss = vectors_of(dataset, kinds), task_loss_of(dataset, task)
    folds = min(FOLDS, len(set(dataset.patients)))
    if folds < 2:
        raise ValueError("a linear model needs at least 2 training patients to choose its penalty, got 1")
    apart = over_folds(dataset, task, folds=folds, seed=seed)
    everyone = torch.arange(len(dataset))

    def unseen(penalties: dict[str, float]) -> float:
        logits = apart(linear_teacher(vectors, loss, task.outputs, penalties), quiet=True)["logits"]
        return float(loss(logits, everyone))

    chosen = dict.fromkeys(kinds, math.inf)
    for kind in kinds:
        if kind == "deviation" and math.isinf(chosen["mean"]):
            continue
        # Without any vector the model is a constant, so the first kind stays.
        grid = [chosen["mean"]] if kind == "deviation" else list(GRID)
        if kind != kinds[0]:
            grid.append(math.inf)
        chosen = min(({**chosen, kind: penalty} for penalty in grid), key=unseen)
    return chosen


def linear_teacher(
    vectors: Mapping[str, Tensor], loss: RowsLoss, outputs: int, penalties: Penalties
) -> Callable[[Part], dict[str, Tensor]]:
    """A function for :func:`~disentangled_mil.train.cross_fit`: it fits on a part and predicts all samples.

    Args:
        vectors: vectors of all samples.
        loss: loss of logits.
        outputs: number of logits K.
        penalties: penalties of ``fit_linear``.

    Returns:
        The function.
    """
    return lambda part: {"logits": fit_linear(vectors, part.rows, loss, outputs, penalties)(vectors)}
