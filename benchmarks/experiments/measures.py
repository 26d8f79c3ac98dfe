"""Numbers that explain a result: conflicts, confidences, entropy of the attention, what subspaces know."""

import csv
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from disentangled_mil.data import Cohort
from disentangled_mil.models import Teacher, TeacherOutput
from disentangled_mil.nn.attention import LazyAttention
from disentangled_mil.train import Split, load_model
from disentangled_mil.train.datasets import Batch, CohortDataset

from .cohorts import planted
from .experiment import Trial

_SAMPLES = 60  # that are looked at; entropy needs dense maps
_RIDGE = np.logspace(-1, 4, 11)


class Seen(NamedTuple):
    """One sample, and what the teacher makes of it."""

    batch: Batch
    patient: str
    output: TeacherOutput


def conflicts(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """The share of head rows whose gradients conflict, over all steps, where gradients are coordinated."""
    with (folder / "teacher.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {"conflicts": fmean(float(row["conflicts"]) for row in rows)} if "conflicts" in rows[0] else {}


def confidences(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """The mean confidence of every subspace in the truth, over held-out patients and magnifications."""
    task = split.train.fit_task(trial.case.task)
    found: dict[str, list[float]] = {}
    for seen in _teacher(folder, trial, split, next(iter(split.tests.values()))):
        for branch in seen.output.branches.values():
            for name, value in task.confidence(branch.subspace_logits, seen.batch.target).items():
                found.setdefault(f"confidence {name}", []).append(float(value))
    return {name: fmean(values) for name, values in found.items()}


def attention_entropy(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """The entropy of the attention over the keys, as a share of that of uniform attention (1)."""
    found: dict[str, list[float]] = {}
    for seen in _teacher(folder, trial, split, next(iter(split.tests.values()))):
        for branch in seen.output.branches.values():
            for name, attention in branch.attention.items():
                if (entropy := _entropy(attention)) is not None:
                    found.setdefault(f"entropy {name}", []).append(entropy)
    return {name: fmean(values) for name, values in found.items()}


def _entropy(attention: LazyAttention) -> float | None:
    """Mean over queries and heads; None for a single key."""
    weights = attention.weights()[0].double()  # [H, N, J]
    if weights.shape[-1] < 2:
        return None
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)
    return float((entropy / np.log(weights.shape[-1])).mean())


def subspaces_apart(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """What each subspace vector knows of each program, and how alike the subspace vectors are.

    A linear probe (ridge) is fitted on the training patients and predicts a program for the held-out patients. A
    program is the planted one, or the mean of the scaled genes of a subspace. Linear CKA compares two subspaces: 1
    means that they hold the same.
    """
    learn, held = split.train.with_expression(), next(iter(split.tests.values()))
    vectors, others = (_vectors(folder, trial, split, cohort) for cohort in (learn, held))
    programs, truths = (_programs(trial, split, cohort) for cohort in (learn, held))
    own: list[float] = []
    foreign: list[float] = []
    alike: list[float] = []
    for name in vectors:
        for program in programs:
            probe = RidgeCV(_RIDGE).fit(*_aligned(vectors[name], programs[program]))
            score = float(probe.score(*_aligned(others[name], truths[program])))
            (own if program == name else foreign).append(score)
    for one, two in combinations(others, 2):
        alike.append(
            _cka(*(np.stack([others[name][patient] for patient in sorted(others[one])]) for name in (one, two)))
        )
    means = {"R2 own program": own, "R2 other programs": foreign, "CKA": alike}
    return {name: fmean(values) for name, values in means.items() if values}


def _aligned(
    vectors: Mapping[str, NDArray[np.float64]], program: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    patients = [patient for patient in vectors if patient in program]
    return np.stack([vectors[patient] for patient in patients]), np.array([program[patient] for patient in patients])


def _vectors(folder: Path, trial: Trial, split: Split, cohort: Cohort) -> dict[str, dict[str, NDArray[np.float64]]]:
    """{subspace: {patient: vector}}: all magnifications side by side, averaged over the slides of a patient."""
    collected: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for seen in _teacher(folder, trial, split, cohort, limit=None):
        branches = seen.output.branches.values()
        for name in next(iter(branches)).features:
            vector = torch.cat([branch.features[name][0] for branch in branches]).double().numpy()
            collected.setdefault(name, {}).setdefault(seen.patient, []).append(vector)
    return {name: {p: np.mean(v, axis=0) for p, v in each.items()} for name, each in collected.items()}


def _programs(trial: Trial, split: Split, cohort: Cohort) -> dict[str, dict[str, float]]:
    """The strength of every program in every patient."""
    if trial.case.cohort.startswith("planted"):
        return {name: column.to_dict() for name, column in planted(trial.seed).programs.items()}
    pipeline = split.train.fit_expression()
    assert cohort.expression is not None
    scaled = pipeline.transform(cohort.expression)
    return {
        name: dict(zip(cohort.expression.index, values.mean(1).tolist(), strict=True))
        for name, values in scaled.items()
    }


def _cka(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Linear centered kernel alignment of two sets of vectors [n, C] of the same patients."""
    one, two = one - one.mean(0), two - two.mean(0)
    norms = np.linalg.norm(one.T @ one) * np.linalg.norm(two.T @ two)
    return float(np.linalg.norm(one.T @ two) ** 2 / norms) if norms else 0.0


@torch.no_grad()
def _teacher(
    folder: Path, trial: Trial, split: Split, cohort: Cohort, *, limit: int | None = _SAMPLES
) -> Iterator[Seen]:
    """What the saved teacher makes of the samples of patients with expression, up to a limit."""
    model = cast(Teacher, load_model(folder / "teacher").model)
    task, pipeline = split.train.fit_task(trial.case.task), split.train.fit_expression()
    dataset = CohortDataset(cohort, trial.case.task, task, pipeline, cache=trial.cache)
    for row in range(len(dataset) if limit is None else min(limit, len(dataset))):
        batch = dataset.batch([row])
        yield Seen(batch, dataset.patients[row], model(batch.bags, batch.genes))
