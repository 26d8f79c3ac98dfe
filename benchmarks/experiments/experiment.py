"""What an experiment is: cases, variants, and the row that all rows are compared with.

A *case* is a cohort with a task. A *trial* is one seed and one fold of a case. A *variant* turns a trial into an
outcome: predictions of one model for the test patients. Every variant of every trial is one run, stored as one file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from disentangled_mil.train import Split, TrainingOptions
from disentangled_mil.train.bag_cache import BagCache

SEEDS = (0, 1, 2, 3, 4)


class Case(NamedTuple):
    """A cohort of :data:`.cohorts.COHORTS` with one of its tasks."""

    cohort: str
    task: str


class Trial(NamedTuple):
    """One seed and one fold of a case.

    Attributes:
        case: cohort and task.
        seed: seed of folds, patients, initialization and order.
        fold: number of the fold.
        split: training and test patients.
        options: options of the training, with the seed.
        folder: scratch folder, which all variants of the trial share.
        cache: cache of bags, which all variants of the trial share.
    """

    case: Case
    seed: int
    fold: int
    split: Split
    options: TrainingOptions
    folder: Path
    cache: BagCache


class Outcome(NamedTuple):
    """What a variant gives for one trial.

    Attributes:
        metrics: {test set: {metric: value}}; empty where nothing is predicted.
        predictions: predictions and labels, one row per test set and patient.
        measures: other numbers, such as the entropy of the attention.
        maps: views of one slide: its name as ``slide``, and under ``views`` pictures as rows of numbers.
    """

    metrics: Mapping[str, Mapping[str, float]]
    predictions: pd.DataFrame
    measures: Mapping[str, float] = {}
    maps: Mapping[str, Any] = {}


class Method(Protocol):
    """The work of a variant."""

    def __call__(self, trial: Trial) -> Outcome:
        """Train and test on one trial."""
        ...


@dataclass(frozen=True)
class Variant:
    """One setting that is compared with others.

    Args:
        name: name in files and tables. Experiments that use one name mean one variant, so its runs are shared.
        method: work of one trial.
        cohorts: cohorts on which it can run; all by default.
        without_tasks: tasks for which it makes no sense.
    """

    name: str
    method: Method
    cohorts: tuple[str, ...] = ()
    without_tasks: tuple[str, ...] = ()

    def fits(self, case: Case) -> bool:
        """Whether the variant can run on a case."""
        return (not self.cohorts or case.cohort in self.cohorts) and case.task not in self.without_tasks


@dataclass(frozen=True)
class Experiment:
    """A question, the runs that answer it, and how they are shown.

    Args:
        name: name on the command line.
        question: title of the section of the page.
        purpose: one paragraph: what varies, what is fixed, and what the table answers.
        cases: cohorts and tasks.
        variants: settings in the order of the rows.
        reference: row with which every other row is compared.
        pairs: further differences, (row, over row).
        seeds: seeds of a full run.
        figure: name of a drawing of :mod:`.figures`.
        columns: measures that are columns of a second table.
    """

    name: str
    question: str
    purpose: str
    cases: tuple[Case, ...]
    variants: tuple[Variant, ...]
    reference: str
    pairs: tuple[tuple[str, str], ...] = ()
    seeds: tuple[int, ...] = SEEDS
    figure: str = "differences"
    columns: tuple[str, ...] = ()

    def variants_of(self, case: Case) -> tuple[Variant, ...]:
        """The variants that can run on a case."""
        return tuple(variant for variant in self.variants if variant.fits(case))
