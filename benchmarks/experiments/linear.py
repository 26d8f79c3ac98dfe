"""Linear models on the same patients and folds: the floor on genes, and the late fusion of slides and genes.

The model is the linear floor of this package, which it fits on slides: principal components, a ridge penalty, and the
loss of the task. Everything is fitted on the training patients.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.linear import fit_linear, mean_features

from .experiment import Outcome, Trial
from .networks import tested

_COMPONENTS = {"slides": 20, "genes": 40}


@dataclass(frozen=True)
class Linear:
    """A linear model for each input; the logits of several are averaged (late fusion).

    Args:
        inputs: ``"slides"``, ``"genes"`` or both.
    """

    inputs: tuple[str, ...]

    def __call__(self, trial: Trial) -> Outcome:
        """Fit and test."""
        name, split = trial.case.task, trial.split
        task, pipeline = split.train.fit_task(name), split.train.fit_expression()
        everyone = split.train if self.inputs == ("slides",) else split.train.with_expression()
        train, *tests = (
            CohortDataset(cohort, name, task, pipeline, cache=trial.cache)
            for cohort in (everyone, *split.tests.values())
        )
        start = time.perf_counter()
        models = [
            fit_linear(_given(train, each), train.target, task, components=_COMPONENTS[each]) for each in self.inputs
        ]
        seconds = time.perf_counter() - start
        logits: dict[str, Tensor] = {}
        for test, dataset in zip(split.tests, tests, strict=True):
            each = [model(_given(dataset, kind)) for model, kind in zip(models, self.inputs, strict=True)]
            logits[test] = torch.stack(each).mean(0)
        return tested(task, logits, tests, {"training s per patient": seconds / len(everyone.patients)})


def _given(dataset: CohortDataset, kind: str) -> Tensor:
    """The inputs of every sample [n, P]."""
    return mean_features(dataset) if kind == "slides" else torch.cat(list(dataset.genes.values()), 1)
