"""The whole method on one split: linear floor, genes alone, teacher, student from scratch, distilled student."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from .._checks import check_choice
from ..data.cohort import Cohort, columns_of_labels
from ..data.folds import inner_split, pool_rare
from ..losses import DistillationTargets
from ..report.tables import headroom_line
from ..tasks import Task
from .building import StageBuilder
from .checkpoint import save_model
from .comparison import Evaluation
from .datasets import BagCache, CohortDataset
from .linear import BOTH, SLIDES, choose_penalties, fit_linear, task_loss_of, vectors_of
from .loop import predict_logits, train_stage
from .options import TrainingOptions
from .out_of_fold import Headroom, check_teacher_folds, distill_out_of_fold
from .predictions import predictions_table
from .stages import Stage

NETWORKS = ("genes", "teacher", "student", "distilled")
MODELS = ("linear", *NETWORKS)
IN_SAMPLE_WEIGHT = 3.0
# Of distillation that is wanted although linear students do not gain from it.
LEAST_WEIGHT = 1.0

AlterTargets: TypeAlias = Callable[[dict[str, DistillationTargets], CohortDataset], dict[str, DistillationTargets]]
Predict: TypeAlias = Callable[[CohortDataset], Tensor]


class Split(NamedTuple):
    """Training patients and test patients.

    Attributes:
        train: training patients; those without expression serve the students only.
        tests: test patients by name of the test set; all have expression.
    """

    train: Cohort
    tests: Mapping[str, Cohort]


class Result(NamedTuple):
    """The results of one split.

    Attributes:
        metrics: {model: {test set: {metric: value}}}.
        predictions: predictions and labels, one row per model, test set and patient.
        headroom: what there was to gain from the teacher; None where it was not measured. Distillation was declined
            if it is there and ``metrics`` has no ``"distilled"``.
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
    folder: Path,
    *,
    models: Collection[str] = MODELS,
    alter_targets: AlterTargets | None = None,
    cache: BagCache | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train and evaluate all models on one split; everything is fitted on its training patients.

    Args:
        split: training patients and test patients.
        name: name of the task.
        options: options of the training.
        folder: folder for checkpoints, logs and states.
        models: models to train, some of ``MODELS``.
        alter_targets: function from the targets of distillation and the training samples to other targets, for
            instance permuted ones as a control.
        cache: cache of bags.
        resume: whether an interrupted training of the same split is continued.
        quiet: whether no progress is shown.

    Returns:
        Metrics and predictions.

    Raises:
        ValueError: patients, labels, expression or options do not allow the task, a test patient trains or has no
            expression, or a model is unknown.
    """
    _check_tests(split)
    _check_models(models, options)
    folder.mkdir(parents=True, exist_ok=True)
    task = split.train.fit_task(name)
    pipeline = split.train.fit_expression()
    cache = cache or BagCache()

    def dataset(cohort: Cohort) -> CohortDataset:
        return CohortDataset(cohort, name, task, pipeline, cache=cache)

    learn, choose = _inner_split(split.train, name, options)
    everyone, paired = dataset(learn), dataset(learn.with_expression())
    choose_everyone = dataset(choose) if choose is not None else None
    choose_paired = dataset(choose.with_expression()) if choose is not None else None
    tests = {test: dataset(cohort) for test, cohort in split.tests.items()}
    distills = "distilled" in models and options.distill != "never"
    measures = distills and (options.distill == "auto" or options.distillation_targets == "out_of_fold")
    if measures:
        check_teacher_folds(everyone, options)
    penalties = {}
    if "linear" in models or measures or (options.linear and (distills or "student" in models)):
        penalties["student"] = choose_penalties(everyone, task, SLIDES, seed=options.seed)
    if measures or (options.linear and "teacher" in models):
        penalties["teacher"] = choose_penalties(paired, task, BOTH, seed=options.seed)
    builder = StageBuilder(split.train, task, pipeline, options, penalties)
    predict: dict[str, Predict] = {}

    def train(model: str, stage: Stage, learn: CohortDataset, choose: CohortDataset | None) -> None:
        train_stage(model, stage, learn, choose, options, folder, resume=resume, quiet=quiet)
        predict[model] = partial(predict_logits, stage, options=options)
        kind = "student" if model == "distilled" else model
        extra = {"task_name": name, "task": task.state(), "cohort": split.train.reading()}
        if kind != "student":
            extra["expression"] = pipeline.state()
        save_model(folder / model, stage.model, kind, builder.arguments(kind), {**extra, "training": asdict(options)})

    if "linear" in models:
        rows, loss = torch.arange(len(everyone)), task_loss_of(everyone, task)
        linear = fit_linear(vectors_of(everyone, SLIDES), rows, loss, task.outputs, penalties["student"])
        predict["linear"] = lambda test: linear(vectors_of(test, SLIDES))
    if "genes" in models:
        train("genes", builder.genes(), paired, choose_paired)
    teacher = None
    if "teacher" in models:
        teacher = builder.teacher(paired)
        train("teacher", teacher, paired, choose_paired)
    targets, headroom = None, None
    if distills:
        if measures:
            out_of_fold = distill_out_of_fold(builder, everyone, choose_paired, folder, resume=resume, quiet=quiet)
            targets, headroom = out_of_fold
        if options.distill == "auto" and headroom is not None and not headroom.promises:
            targets = None
        elif options.distillation_targets == "in_sample" and teacher is not None:
            targets = teacher.targets(everyone)
        if targets is not None and alter_targets is not None:
            targets = alter_targets(targets, everyone)
        if headroom is not None and not quiet:
            print(headroom_line({**headroom._asdict(), "distilled": targets is not None}, task), file=sys.stderr)
    if "student" in models:
        train("student", builder.student(everyone), everyone, choose_everyone)
    if targets is not None:
        weighted = _with_weight(builder, headroom)
        train("distilled", weighted.student(everyone, targets), everyone, choose_everyone)
    return _evaluate(predict, tests, task, headroom)


def _with_weight(builder: StageBuilder, headroom: Headroom | None) -> StageBuilder:
    """The builder with the weight of the divergence, if none was given: chosen for targets out of fold, else fixed."""
    options = builder.options
    if options.prediction_weight is not None:
        return builder
    weight = IN_SAMPLE_WEIGHT
    if headroom is not None and options.distillation_targets == "out_of_fold":
        weight = headroom.weight or LEAST_WEIGHT
    return replace(builder, options=replace(options, prediction_weight=weight))


def _check_models(models: Collection[str], options: TrainingOptions) -> None:
    """Known models, and a teacher for those that need it."""
    for model in models:
        check_choice("models", model, MODELS)
    needs = "distilled" in models and options.distill != "never" and options.distillation_targets == "in_sample"
    if needs and "teacher" not in models:
        raise ValueError("models must hold 'teacher' for distillation_targets = 'in_sample', got " + ", ".join(models))


def _check_tests(split: Split) -> None:
    """Test patients are new, and every model can predict for them."""
    for name, cohort in split.tests.items():
        paired = () if cohort.expression is None else cohort.expression.index
        if known := set(cohort.patients) & set(split.train.patients):
            raise ValueError(f"tests[{name!r}] must hold no training patient, got {min(known)!r}")
        if unpaired := set(cohort.patients) - set(paired):
            raise ValueError(f"tests[{name!r}] must have expression of every patient, got none for {min(unpaired)!r}")


def _inner_split(train: Cohort, name: str, options: TrainingOptions) -> tuple[Cohort, Cohort | None]:
    """Training patients -> those who teach and those who choose the epoch."""
    if options.validation == 0:
        return train, None
    labels = train.labels(name)
    classes = train.definition(name).kind.strata(columns_of_labels(labels))
    expression = train.expression.index if train.expression is not None else ()
    # Patients with and without expression are split alike, so that both sides choose the teacher and the student.
    strata = [f"{stratum} {patient in expression}" for patient, stratum in zip(labels.index, classes, strict=True)]
    if options.validation * len(train.with_expression().patients) < 1:
        raise ValueError(
            f"validation must leave at least one patient with expression to choose the epoch, got "
            f"{options.validation} of {len(train.with_expression().patients)}"
        )
    split = inner_split(list(labels.index), pool_rare(strata, 2), fraction=options.validation, seed=options.seed)
    return train.subset(split.train), train.subset(split.test)


def _evaluate(
    predict: Mapping[str, Predict], tests: Mapping[str, CohortDataset], task: Task, headroom: Headroom | None
) -> Result:
    """Metrics and predictions of every model on every test set."""
    metrics: dict[str, dict[str, dict[str, float]]] = {model: {} for model in predict}
    evaluations = {test: Evaluation(task, dataset.labels, dataset.patients, {}) for test, dataset in tests.items()}
    tables = []
    for model, logits_of in predict.items():
        for test, dataset in tests.items():
            logits = logits_of(dataset)
            evaluations[test].logits[model] = logits
            metrics[model][test] = task.metrics(logits, dataset.labels, dataset.patients)
            table = predictions_table(task, logits, dataset.patients).merge(dataset.truth(), on="patient")
            table.insert(0, "model", model)
            table.insert(1, "test", test)
            tables.append(table)
    return Result(metrics, pd.concat(tables, ignore_index=True), headroom, evaluations)
