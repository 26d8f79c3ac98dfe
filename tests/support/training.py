"""Small trainings for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from disentangled_mil.train import linear, out_of_fold, run_folder
from disentangled_mil.train.comparison import compare, headline_draws
from disentangled_mil.train.experiment import Split
from disentangled_mil.train.options import TrainingOptions

from .cohorts import small_planted

# Small models; distillation begins in the second of three epochs. One teacher gives the targets, which is quick.
OPTIONS = TrainingOptions(
    dim=8,
    heads=2,
    dim_head=4,
    gene_tokens=2,
    dropout=0.2,
    gene_dropout=0.1,
    epochs=3,
    batch_size=16,
    learning_rate=0.01,
    lr_warmup=0.2,
    validation=0.25,
    task_warmup=0.3,
    prediction_weight=3.0,
    share_weight=0.0,
    distill="always",
    distillation_targets="in_sample",
    teacher_folds=2,
    seed=5,
)


@contextmanager
def few_choices() -> Iterator[None]:
    """Few resamples, and two penalties on two folds instead of five on five.

    The full numbers take two thirds of the time of a small run. Penalties are still chosen.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "compare", partial(compare, resamples=20))
        patch.setattr(out_of_fold, "headline_draws", partial(headline_draws, resamples=20))
        patch.setattr(linear, "GRID", (3e-4, 3e-3))
        patch.setattr(linear, "FOLDS", 2)
        yield


def small_split() -> Split:
    """24 training patients, of whom the last 8 have no expression, and 10 others to test."""
    cohort = small_planted().cohort
    train = cohort.subset(cohort.patients[:24])
    return Split(
        replace(train, expression=train.expression.iloc[:16]), {"internal": cohort.subset(cohort.patients[24:])}
    )
