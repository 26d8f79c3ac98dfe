"""The weight of the teacher's predictions, chosen on training patients by linear students of linear teachers.

Students are cross-validated. Targets from teachers that have seen the held-out patients would carry their labels to the
students, and any weight would look good. So the teachers are cross-fitted anew inside the training part of every fold.
That costs K (K + 4) ridge regressions for K folds, which take seconds.
"""

import torch
from torch import Tensor

from ..losses import DistillationTargets
from .building import StageBuilder
from .cross_fitting import Part
from .datasets import CohortDataset
from .inner_folds import over_folds
from .linear import BOTH, SLIDES, distilled_loss, fit_linear, linear_teacher, task_loss_of, vectors_of

WEIGHTS = (0.0, 1.0, 3.0, 10.0)


def choose_weight(builder: StageBuilder, train: CohortDataset) -> float:
    """The weight with which a linear student predicts patients best that neither it nor its teachers have seen.

    Args:
        builder: what the models of the split have in common, with penalties of teachers and students.
        train: training samples; those without expression have no targets.

    Returns:
        One of ``WEIGHTS``; 0 if the student predicts best without a teacher.
    """
    task, options = builder.task, builder.options
    vectors = vectors_of(train, SLIDES)
    folds = options.teacher_folds

    def students(part: Part) -> dict[str, Tensor]:
        seen = train.subset(part.rows)
        targets = DistillationTargets(_linear_targets(builder, seen, part.seed), seen.paired)
        own, rows = {name: values[part.rows] for name, values in vectors.items()}, torch.arange(len(seen))
        logits = {}
        for weight in WEIGHTS:
            loss = task_loss_of(seen, task)
            if weight:
                loss = distilled_loss(loss, targets, task, weight, options.temperature)
            logits[str(weight)] = fit_linear(own, rows, loss, task.outputs, builder.penalties["student"])(vectors)
        return logits

    predicted = over_folds(train, task, folds=folds, seed=options.seed)(students, quiet=True)
    sign = -1 if next(iter(task.headline)) in task.errors else 1
    return max(
        WEIGHTS,
        key=lambda weight: sign * task.headline_metric(predicted[str(weight)], train.labels, train.patients),
    )


def _linear_targets(builder: StageBuilder, seen: CohortDataset, seed: int) -> Tensor:
    """Logits of linear teachers for the samples with expression, from teachers that have not seen them [n, K]."""
    paired = len({patient for patient, has in zip(seen.patients, seen.paired, strict=True) if has})
    folds = min(builder.options.teacher_folds, paired)
    apart = over_folds(seen, builder.task, folds=folds, seed=seed, present=seen.paired)
    loss = task_loss_of(seen, builder.task)
    teach = linear_teacher(vectors_of(seen, BOTH), loss, builder.task.outputs, builder.penalties["teacher"])
    return apart(teach, quiet=True)["logits"]
