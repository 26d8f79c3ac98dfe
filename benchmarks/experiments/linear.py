"""Linear models on the same patients and folds: the floor on genes, and the late fusion of slides and genes.

The model is the linear model of this package: ridge regression with the loss of the task, the penalty chosen by
cross-validation. Everything is fitted on the training patients.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled_mil.models import LinearModel
from disentangled_mil.tasks import Task
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.linear import SLIDES, choose_penalties, fit_linear, task_loss_of, vectors_of

from .experiment import Outcome, Trial
from .networks import tested


@dataclass(frozen=True)
class Linear:
    """A linear model for each input; the logits of several are averaged (late fusion).

    Args:
        inputs: kinds of vectors of each model: ``SLIDES``, ``GENES`` or ``BOTH``.
    """

    inputs: tuple[tuple[str, ...], ...]

    def __call__(self, trial: Trial) -> Outcome:
        """Fit and test."""
        name, split = trial.case.task, trial.split
        task, pipeline = split.train.fit_task(name), split.train.fit_expression()
        everyone = split.train if self.inputs == (SLIDES,) else split.train.with_expression()
        train, *tests = (
            CohortDataset(cohort, name, task, pipeline, cache=trial.cache)
            for cohort in (everyone, *split.tests.values())
        )
        start = time.perf_counter()
        models = {kinds: _fitted(train, task, kinds, trial.seed) for kinds in self.inputs}
        seconds = time.perf_counter() - start
        logits: dict[str, Tensor] = {}
        for test, dataset in zip(split.tests, tests, strict=True):
            logits[test] = torch.stack([model(vectors_of(dataset, kinds)) for kinds, model in models.items()]).mean(0)
        return tested(task, logits, tests, {"training s per patient": seconds / len(everyone.patients)})


def _fitted(train: CohortDataset, task: Task, kinds: tuple[str, ...], seed: int) -> LinearModel:
    penalties = choose_penalties(train, task, kinds, seed=seed)
    rows, loss = torch.arange(len(train)), task_loss_of(train, task)
    return fit_linear(vectors_of(train, kinds), rows, loss, task.outputs, penalties)
