"""The cohorts of the experiments: for every seed and fold the training patients and the test patients.

Real cohorts are described in ``benchmarks/cohorts``. Their folds divide the patients with RNA and the label, and all
other patients with the label train the students. Planted cohorts have one fold: 160 training patients, 160 held-out
patients, and external patients from other scanners.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from disentangled_mil.data import Cohort, read_cohort
from disentangled_mil.data.cohort import columns_of_labels
from disentangled_mil.data.expression import ExpressionOptions
from disentangled_mil.data.folds import patient_folds
from disentangled_mil.data.planted import PlantedCohort, planted_cohort
from disentangled_mil.tasks import Classification
from disentangled_mil.train import Split, TrainingOptions
from disentangled_mil.train.cross_validation import TRAIN_OPTIONS
from disentangled_mil.train.demo import DEMO_GRID, DEMO_OPTIONS

from . import kidney

DESCRIPTIONS = Path(__file__).parents[1] / "cohorts"
DATA = Path(__file__).parents[3] / "shared" / "data"
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the scanner's shift

FOLDS = 3
_PATIENTS = 160
# The generator's defaults and the options of the demo were chosen on lower seeds.
_FIRST_PLANTED_SEED = 11


class Source(NamedTuple):
    """Where the trials of a cohort come from.

    Attributes:
        tasks: tasks of the cohort that the experiments use.
        folds: number of folds.
        split: training and test patients of a task, a seed and a fold.
        options: options of the training before a variant changes them.
        present: whether its files are there.
    """

    tasks: tuple[str, ...]
    folds: int
    split: Callable[[str, int, int], Split]
    options: TrainingOptions = TRAIN_OPTIONS
    present: Callable[[], bool] = lambda: True


@cache
def planted(seed: int) -> PlantedCohort:
    """The training patients and then the held-out patients of a seed, with the truth."""
    return planted_cohort(2 * _PATIENTS, seed=_FIRST_PLANTED_SEED + seed, grid=DEMO_GRID)


def _planted_split(task: str, seed: int, fold: int) -> Split:
    return _beside(planted(seed).cohort, {"external": _external(seed, 1.0)})


def _shifted_split(task: str, seed: int, fold: int) -> Split:
    return _beside(planted(seed).cohort, {f"shift {shift:g}": _external(seed, shift) for shift in STRENGTHS})


def _external(seed: int, shift: float) -> Cohort:
    """The same new patients at every strength, seen by another scanner."""
    number = _FIRST_PLANTED_SEED + seed + 10_000
    return planted_cohort(_PATIENTS, seed=number, shift=shift, grid=DEMO_GRID).cohort


def _beside(cohort: Cohort, tests: dict[str, Cohort]) -> Split:
    held_out = cohort.subset(cohort.patients[_PATIENTS:])
    return Split(cohort.subset(cohort.patients[:_PATIENTS]), {"internal": held_out, **tests})


@cache
def described(name: str) -> Cohort:
    """The cohort of a description."""
    return read_cohort(DESCRIPTIONS / f"{name}.toml")


@cache
def glioblastomas() -> Cohort:
    """The glioblastomas with unscaled expression (TPM), which the choice of variable genes needs.

    Slides and labels are those of the glioma cohort. The task ``purity`` separates tumors above the median purity from
    the others.
    """
    with np.load(DATA / "tcga_gbm_tpm.npz") as stored:
        table = pd.DataFrame(stored["tpm"], index=stored["patient_id"], columns=stored["gene"])
    gliomas = described("tcga_gbmlgg")
    purity = pd.read_csv(DATA / "tcga_gbmlgg" / "clinical.csv", index_col="patient_id")["purity"].dropna()
    known = [patient for patient in gliomas.patients if patient in table.index and patient in purity.index]
    cohort = gliomas.subset(known)
    high = purity.loc[known] > purity.loc[known].median()
    return replace(
        cohort,
        clinical=cohort.clinical.assign(purity=np.where(high, "high", "low")),
        expression=table.loc[known],
        expression_options=ExpressionOptions(duplicates="mean"),
        tasks={**cohort.tasks, "purity": Classification.define(column="purity")},
    )


def folded(cohort: Cohort, task: str, seed: int, fold: int) -> Split:
    """One fold of a cohort, stratified by the label, as ``train`` divides it."""
    labels, paired = cohort.labels(task), cohort.with_expression()
    eligible = labels.loc[[patient for patient in paired.patients if patient in labels.index]]
    strata = cohort.definition(task).kind.strata(columns_of_labels(eligible))
    tested = patient_folds(eligible.index, strata, folds=FOLDS, seed=seed)[fold].test
    train = [patient for patient in labels.index if patient not in set(tested)]
    return Split(cohort.subset(train), {"test": cohort.subset(tested)})


def _real(load: Callable[[], Cohort], folder: str, *tasks: str) -> Source:
    return Source(
        tasks,
        FOLDS,
        lambda task, seed, fold: folded(load(), task, seed, fold),
        present=lambda: (DATA / folder).exists(),
    )


COHORTS = {
    "planted": Source(("diagnosis", "grading", "survival"), 1, _planted_split, DEMO_OPTIONS),
    "planted-shifted": Source(("diagnosis",), 1, _shifted_split, DEMO_OPTIONS),
    "tcga_stad": _real(lambda: described("tcga_stad"), "tcga_stad", "msi", "subtype", "survival"),
    "tcga_gbmlgg": _real(lambda: described("tcga_gbmlgg"), "tcga_gbmlgg", "diagnosis", "grading", "survival"),
    "tcga_kirc": _real(lambda: kidney.cohort(DESCRIPTIONS / "tcga_kirc.toml"), "tcga_kirc", "grading", "survival"),
    "tcga_gbm": _real(glioblastomas, "tcga_gbm_tpm.npz", "purity", "survival"),
}
