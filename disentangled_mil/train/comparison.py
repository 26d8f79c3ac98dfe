"""Models and their gains over others on the same patients, by the first headline metric of their task."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..metrics import PairedDifference, bootstrap_patients, paired_difference, percentile_interval
from ..tasks import Labels, Task

PAIRS = (("distilled", "student"), ("teacher", "student"), ("student", "linear"), ("teacher", "genes"))


class Evaluation(NamedTuple):
    """One test set of one split, as its models predict it.

    Attributes:
        task: task that was fitted on the training patients.
        labels: labels of every sample.
        patients: patient of every sample.
        logits: logits [n, K] by model.
    """

    task: Task
    labels: Labels
    patients: Sequence[str]
    logits: dict[str, Tensor]


def counted(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The patients of one test set in one or several splits.

    Args:
        evaluations: the test set in every split.

    Returns:
        The number of ``patients``, their ``labels`` in words, and metrics by ``chance``.
    """
    task = evaluations[0].task
    labels: dict[str, list[Any]] = {name: [] for name in evaluations[0].labels}
    patients = 0
    for one in evaluations:
        rows = {patient: row for row, patient in enumerate(one.patients)}.values()
        patients += len(rows)
        for name, column in labels.items():
            column.extend(one.labels[name][row] for row in rows)
    return {"patients": patients, "labels": task.summary(labels), "chance": dict(task.chance(labels))}


def headline_draws(
    task: Task, logits: Tensor, labels: Labels, patients: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> npt.NDArray[np.float64]:
    """The first headline metric on all patients, and on patients drawn anew within their strata.

    Args:
        task: task that was predicted.
        logits: logits of the samples.
        labels: labels of the samples.
        patients: patient of every sample; a patient is drawn with all of them.
        resamples: number of draws R.
        seed: seed of the draws.

    Shape:
        ``logits`` [n, K].

    Returns:
        The metric on all patients, then on every draw [1 + R].
    """
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows_of.setdefault(patient, []).append(row)
    samples = [torch.tensor(rows) for rows in rows_of.values()]
    first = [rows[0] for rows in rows_of.values()]
    strata = task.strata({name: [column[row] for row in first] for name, column in labels.items()})

    def metric(drawn: npt.NDArray[np.int64]) -> float:
        rows = torch.cat([samples[patient] for patient in drawn])
        copies = [copy for copy, patient in enumerate(drawn) for _ in samples[patient]]
        chosen = {name: [column[row] for row in rows.tolist()] for name, column in labels.items()}
        return task.headline_metric(logits[rows], chosen, copies)

    return bootstrap_patients(metric, strata, resamples=resamples, seed=seed)


def gain(task: Task, first: npt.ArrayLike, second: npt.ArrayLike) -> PairedDifference:
    """How much better the first model is than the second; above 0 it is better, also where less is better."""
    if next(iter(task.headline)) in task.errors:
        first, second = second, first
    return paired_difference(first, second)


def compare(splits: Sequence[Mapping[str, Evaluation]], *, resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Metrics of models and their gains over others on each test set, with intervals over the patients of all splits.

    The metric is the mean of that of every split, as in the table of results. Patients are drawn within splits. A pair
    of models is compared on the splits that have both.

    Args:
        splits: test sets of every split, by name.
        resamples: number of draws.

    Returns:
        A mapping for each test set. It has the ``metric``, the number of ``patients``, ``models`` (by name ``splits``,
        ``value``, ``low``, ``high``) and ``gains`` (``first``, ``second``, ``splits``, ``difference``, ``low``,
        ``high``). ``headroom_taken`` is the gain of the distilled student over the student as a share of the
        teacher's gain; None where the teacher has none.
    """
    compared: dict[str, dict[str, Any]] = {}
    for test in splits[0]:
        evaluations = [split[test] for split in splits]
        draws = [
            {
                model: headline_draws(one.task, logits, one.labels, one.patients, resamples=resamples, seed=number)
                for model, logits in one.logits.items()
            }
            for number, one in enumerate(evaluations)
        ]
        models = {}
        for model in dict.fromkeys(model for of_split in draws for model in of_split):
            own = [of_split[model] for of_split in draws if model in of_split]
            models[model] = {"splits": len(own), **percentile_interval(np.mean(own, axis=0))._asdict()}
        gains = []
        for pair in PAIRS:
            both = [of_split for of_split in draws if of_split.keys() >= set(pair)]
            if both:
                means = (np.mean([of_split[model] for of_split in both], axis=0) for model in pair)
                difference = gain(evaluations[0].task, *means)
                gains.append({"first": pair[0], "second": pair[1], "splits": len(both), **difference._asdict()})
        compared[test] = {
            "metric": next(iter(evaluations[0].task.headline)),
            "patients": len({patient for one in evaluations for patient in one.patients}),
            "models": models,
            "gains": gains,
            "headroom_taken": _taken(draws, evaluations[0].task),
        }
    return compared


def _taken(draws: Sequence[Mapping[str, npt.NDArray[np.float64]]], task: Task) -> float | None:
    """The share of the teacher's gain over the student that distillation takes, on the splits that have all three."""
    whole = [of_split for of_split in draws if of_split.keys() >= {"distilled", "teacher", "student"}]
    if not whole:
        return None
    distilled, teacher, student = (
        np.mean([of_split[model] for of_split in whole], axis=0) for model in ("distilled", "teacher", "student")
    )
    possible = gain(task, teacher, student).difference
    return gain(task, distilled, student).difference / possible if possible > 0 else None
