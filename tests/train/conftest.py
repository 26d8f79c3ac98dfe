"""A tiny planted cohort and one finished training, shared by the tests of training."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from disentangled_mil.data.planted import PlantedCohort, planted_cohort
from disentangled_mil.train.examples import Examples
from disentangled_mil.train.experiment import Result, Split, fit_task, run_split
from disentangled_mil.train.options import TrainingOptions


class Finished(NamedTuple):
    """A training that ran to its end."""

    folder: Path
    result: Result


@pytest.fixture(scope="session")
def options() -> TrainingOptions:
    """Small models; distillation from the second of three epochs."""
    return TrainingOptions(
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
        bins=3,
        seed=5,
    )


@pytest.fixture(scope="session")
def planted() -> PlantedCohort:
    return planted_cohort(34, seed=3, grid=(5, 4), width=8, tumor_genes=8, tme_genes=8, other_genes=2)


@pytest.fixture(scope="session")
def split(planted) -> Split:
    """24 training patients, of whom the last 8 have no expression, and 10 others to test."""
    names = planted.cohort.patients
    train = planted.cohort.subset(names[:24])
    train = replace(train, expression=train.expression.iloc[:16])
    return Split(train, {"internal": planted.cohort.subset(names[24:])})


@pytest.fixture(scope="session")
def finished(split, options, tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    return Finished(folder, run_split(split, "grading", options, folder, quiet=True))


@pytest.fixture
def examples(split, options) -> Examples:
    """The training patients, graded."""
    torch.manual_seed(0)
    task = fit_task(split.train, "grading", options)
    return Examples(split.train, task, "grading", split.train.fit_expression())
