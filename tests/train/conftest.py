"""One finished training, shared by the tests of training, and what makes runs short."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from disentangled_mil.data.planted import PlantedCohort
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.experiment import Result, Split, run_split
from disentangled_mil.train.options import TrainingOptions
from tests.support.cohorts import small_planted
from tests.support.training import OPTIONS, few_choices, small_split


class Finished(NamedTuple):
    """A training that ran to its end."""

    folder: Path
    result: Result


@pytest.fixture(autouse=True)
def brief() -> Iterator[None]:
    """Few resamples and few penalties; fixtures of a longer scope ask for them by themselves."""
    with few_choices():
        yield


@pytest.fixture(scope="session")
def options() -> TrainingOptions:
    return OPTIONS


@pytest.fixture(scope="session")
def planted() -> PlantedCohort:
    return small_planted()


@pytest.fixture(scope="session")
def split() -> Split:
    return small_split()


@pytest.fixture(scope="session")
def finished(split, options, tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    with few_choices():
        return Finished(folder, run_split(split, "grading", options, folder, quiet=True))


@pytest.fixture
def dataset(split) -> CohortDataset:
    """The training patients, graded."""
    torch.manual_seed(0)
    return CohortDataset(split.train, "grading", split.train.fit_task("grading"), split.train.fit_expression())
