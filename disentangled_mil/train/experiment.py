"""The whole method on one split: linear floor, genes alone, teacher, student from scratch, distilled student."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from ..data.cohort import Cohort
from .bag_cache import BagCache
from .comparison import Evaluation
from .datasets import CohortDataset
from .options import TrainingOptions
from .out_of_fold import Headroom
from .predictions import predictions_table
from .training import TAKE_GENES, AlterTargets, Trained, train_models


class Split(NamedTuple):
    """Training patients and test patients.

    Attributes:
        train: training patients; those without expression serve the students only.
        tests: test patients by name of the test set; those without expression test the models of slides only.
        lacking: flag, True if another split of the same cohort may test patients without expression. Then all splits
            have the same test sets.
    """

    train: Cohort
    tests: Mapping[str, Cohort]
    lacking: bool = False


class Result(NamedTuple):
    """The results of one split.

    Attributes:
        metrics: {model: {test set: {metric: value}}}.
        predictions: predictions and labels, one row per model, test set and patient.
        headroom: possible gain from the teacher; None where it was not measured. Distillation was declined if it is
            there and ``metrics`` has no ``"distilled"``.
        evaluations: test sets, as the models predict them.
    """

    metrics: dict[str, dict[str, dict[str, float]]]
    predictions: pd.DataFrame
    headroom: Headroom | None = None
    evaluations: Mapping[str, Evaluation] = MappingProxyType({})


def run_split(
    split: Split,
    name: str,
    options: TrainingOptions,
    folder: str | Path,
    *,
    models: Collection[str] | None = None,
    alter_targets: AlterTargets | None = None,
    cache: BagCache | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train models on one split, and evaluate them on its test patients.

    All numbers of a test set count the same patients. Where only some of its patients have expression, the models that
    take genes are evaluated on a second test set, ``"NAME with expression"``, and so are all others.

    Args:
        split: training patients and test patients.
        name: name of the task.
        options: options of the training.
        folder: folder for checkpoints, logs and states.
        models: models to train, see :func:`~disentangled_mil.train.training.train_models`.
        alter_targets: function from the targets of distillation and the training samples to other targets, for
            instance permuted ones as a control.
        cache: cache of bags.
        resume: flag that continues an interrupted training of the same split.
        quiet: flag that hides the progress.

    Returns:
        Metrics and predictions.

    Raises:
        ValueError: patients, labels, expression or options do not allow the task, a test patient trains, or a model is
            unknown.
    """
    for test, cohort in split.tests.items():
        if known := set(cohort.patients) & set(split.train.patients):
            raise ValueError(f"tests[{test!r}] must hold no training patient, got {min(known)!r}")
    trained = train_models(
        split.train,
        name,
        options,
        folder,
        models=models,
        alter_targets=alter_targets,
        cache=cache,
        resume=resume,
        quiet=quiet,
    )
    return _evaluate(trained, dict(_test_sets(trained, split)))


def _test_sets(trained: Trained, split: Split) -> Iterator[tuple[str, CohortDataset]]:
    """The test sets, and those of the patients with expression where there are others too."""
    for test, cohort in split.tests.items():
        dataset = trained.dataset(cohort)
        yield test, dataset
        if (
            trained.predict.keys() & set(TAKE_GENES)
            and dataset.paired.any()
            and (split.lacking or not dataset.paired.all())
        ):
            yield f"{test} with expression", dataset.with_expression()


def _evaluate(trained: Trained, tests: Mapping[str, CohortDataset]) -> Result:
    """Metrics and predictions of every model on every test set for which it can predict."""
    task = trained.task
    metrics: dict[str, dict[str, dict[str, float]]] = {model: {} for model in trained.predict}
    evaluations = {test: Evaluation(task, dataset.labels, dataset.patients, {}) for test, dataset in tests.items()}
    tables = []
    for model, logits_of in trained.predict.items():
        for test, dataset in tests.items():
            if model in TAKE_GENES and not dataset.paired.all():
                continue
            logits = logits_of(dataset)
            evaluations[test].logits[model] = logits
            metrics[model][test] = task.metrics(logits, dataset.labels, dataset.patients)
            table = predictions_table(task, task.predictions(logits), dataset.patients)
            table = table.merge(dataset.truth(), on="patient")
            table.insert(0, "model", model)
            table.insert(1, "test", test)
            tables.append(table)
    return Result(metrics, pd.concat(tables, ignore_index=True), trained.headroom, evaluations)
