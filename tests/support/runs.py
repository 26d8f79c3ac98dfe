"""Folders of finished runs without any training: their models predict noise and some signal."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch

from disentangled_mil.tasks import Classification, DiscreteSurvival, Labels, Task
from disentangled_mil.train import run_folder
from disentangled_mil.train.comparison import Evaluation
from disentangled_mil.train.experiment import Result
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.out_of_fold import Headroom
from disentangled_mil.train.predictions import predictions_table

from .training import few_choices

ALL = ("linear", "genes", "teacher", "student", "distilled")
LOG = "epoch,learning_rate,loss,task,consistency,conflicts,cosine_tumor_tme,projected_tme,gate_10x\n"
LOG += "1,0.1,2.0,1.5,0.5,0.25,-0.1,0.25,0.5\n2,0.1,1.5,1.2,0.3,0.5,-0.2,0.5,0.4\n"


class Fold(NamedTuple):
    """The patients of one fold and their labels."""

    patients: Sequence[str]
    labels: Labels


def class_folds(classes: Sequence[str], *, folds: int = 2, size: int = 24) -> list[Fold]:
    """Folds in which every class has equal numbers of patients."""
    labels = [classes[row % len(classes)] for row in range(size)]
    return [Fold([f"P{fold}-{row:02d}" for row in range(size)], {"label": labels}) for fold in range(folds)]


def survival_folds(*, folds: int = 2, size: int = 24) -> list[Fold]:
    """Folds in which every third time is censored."""
    labels = {"time": [10.0 + 7 * row for row in range(size)], "event": [row % 3 != 0 for row in range(size)]}
    return [Fold([f"P{fold}-{row:02d}" for row in range(size)], labels) for fold in range(folds)]


def write_run(
    path: Path,
    task: Task,
    folds: Sequence[Fold],
    *,
    tests: Sequence[str] = ("test",),
    models: Sequence[str] = ALL,
    declined: Collection[int] = (),
    command: Sequence[str] = ("python", "-m", "disentangled_mil"),
) -> Path:
    """Write a run folder as a training does; logs and checkpoints hold what a report reads.

    Args:
        path: folder.
        task: fitted task.
        folds: patients of every fold; a single one stands in the folder itself, as in the demo.
        tests: names of test sets, which all have these patients.
        models: models; without a distilled student, it was declined.
        declined: numbers of folds in which distillation was declined.
        command: command in ``run.json``.
    """
    generator = torch.Generator().manual_seed(3)
    single = len(folds) == 1
    places = [path] if single else [path / f"fold{number}" for number in range(len(folds))]
    results = []
    trained = [[model for model in models if model != "distilled" or n not in declined] for n in range(len(folds))]
    for number, (fold, own) in enumerate(zip(folds, trained, strict=True)):
        evaluations = {test: _evaluation(task, fold, own, generator) for test in tests}
        tables = [_table(test, model, one) for test, one in evaluations.items() for model in own]
        metrics = {model: {test: _metrics(one, model) for test, one in evaluations.items()} for model in own}
        headroom = Headroom(next(iter(task.headline)), 48, 0.8, 0.7, 0.1, 0.02, 0.2)
        predictions = pd.concat(tables, ignore_index=True)
        if not single:
            predictions.insert(0, "fold", number)
        results.append(Result(metrics, predictions, headroom, evaluations))
    definition = type(task).define(**{column.key: f"{column.name}_column" for column in task.columns})
    folder = run_folder.RunFolder(
        path, "outcome", definition, TrainingOptions(), resume=False, decides={"run": "train"}
    )
    with folder.taken(), few_choices(), pytest.MonkeyPatch.context() as patch:
        for place, own in zip(places, trained, strict=True):
            place.mkdir(exist_ok=True)
            for model in set(own) - {"linear"}:
                (place / f"{model}.csv").write_text(LOG)
                (place / f"{model}.json").write_text(json.dumps({"task": task.state()}))
        patch.setattr("sys.orig_argv", list(command))
        folder.record(threads=1)
        folder.finish(places, results, quiet=True)
    return path


def classification_run(path: Path, classes: Sequence[str] = ("A", "B", "C"), **options) -> Path:
    """A run of a classification with two folds."""
    return write_run(path, Classification(classes), class_folds(classes), **options)


def survival_run(path: Path, folds: Sequence[Fold] | None = None, **options) -> Path:
    """A run of survival with two folds and three intervals."""
    return write_run(path, DiscreteSurvival(torch.tensor([60.0, 120.0])), folds or survival_folds(), **options)


def _evaluation(task: Task, fold: Fold, models: Sequence[str], generator: torch.Generator) -> Evaluation:
    target = task.target_of_labels(fold.labels)
    signal = torch.nn.functional.one_hot(target if isinstance(target, torch.Tensor) else target.interval, task.outputs)
    logits = {
        model: signal * 0.5 * strength + torch.randn(signal.shape, generator=generator)
        for strength, model in enumerate(models, start=1)
    }
    return Evaluation(task, fold.labels, fold.patients, logits)


def _metrics(one: Evaluation, model: str) -> dict[str, float]:
    return one.task.metrics(one.logits[model], one.labels, one.patients)


def _table(test: str, model: str, one: Evaluation) -> pd.DataFrame:
    table = predictions_table(one.task, one.task.predictions(one.logits[model]), one.patients)
    truth: Mapping[str, Sequence[object]] = {name: list(column) for name, column in one.labels.items()}
    return table.assign(model=model, test=test, **truth)
