"""The whole method on one split: genes alone, teacher, student from scratch, distilled student."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from ..data.cohort import Cohort, columns_of_labels
from ..data.expression import ExpressionPipeline
from ..data.folds import inner_split
from ..losses import DistillationTargets
from ..models import GeneNetwork, Student, Teacher
from ..tasks import Task
from .checkpoint import save_model
from .datasets import BagCache, CohortDataset
from .loop import predict_logits, train_stage
from .options import TrainingOptions
from .predictions import predictions_table
from .stages import GeneStage, Stage, StudentStage, TeacherStage

MODELS = ("genes", "teacher", "student", "distilled")


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
    """

    metrics: dict[str, dict[str, dict[str, float]]]
    predictions: pd.DataFrame


def run_split(
    split: Split,
    name: str,
    options: TrainingOptions,
    folder: Path,
    *,
    cache: BagCache | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train and evaluate all four models on one split; everything is fitted on its training patients.

    Args:
        split: training patients and test patients.
        name: name of the task.
        options: options of the training.
        folder: folder for checkpoints, logs and states.
        cache: cache of bags.
        resume: whether an interrupted training of the same split is continued.
        quiet: whether no progress bars are shown.

    Returns:
        Metrics and predictions.

    Raises:
        ValueError: patients, labels or expression do not allow the task, or a test patient trains or has no
            expression.
    """
    _check_tests(split)
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

    stages: dict[str, Stage] = {}
    for model in MODELS:
        torch.manual_seed(options.seed)
        arguments = _arguments(model, split.train, task, pipeline, options)
        teacher = stages.get("teacher")
        targets = teacher.targets(everyone) if model == "distilled" and isinstance(teacher, TeacherStage) else None
        stage = _stage(model, arguments, task, options, targets)
        if isinstance(stage, (TeacherStage, StudentStage)):
            _standardize(stage.model, paired if model == "teacher" else everyone, options.batch_size)
        sees_genes = model in ("genes", "teacher")
        train_stage(
            model,
            stage,
            paired if sees_genes else everyone,
            choose_paired if sees_genes else choose_everyone,
            options,
            folder,
            resume=resume,
            quiet=quiet,
        )
        stages[model] = stage
        extra = {"task_name": name, "task": task.state(), "cohort": split.train.reading()}
        if sees_genes:
            extra["expression"] = pipeline.state()
        kind = "student" if model == "distilled" else model
        save_model(folder / model, stage.model, kind, arguments, {**extra, "training": asdict(options)})
    return _evaluate(stages, tests, task, options)


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
    split = inner_split(list(labels.index), _pool_rare(strata), fraction=options.validation, seed=options.seed)
    return train.subset(split.train), train.subset(split.test)


def _pool_rare(strata: list[str]) -> list[str]:
    """Strata of a single member -> one common stratum, or the commonest one if that would have one member."""
    counts = Counter(strata)
    rare = [stratum for stratum in strata if counts[stratum] < 2]
    pool = "rare" if len(rare) > 1 else counts.most_common(1)[0][0]
    return [stratum if counts[stratum] > 1 else pool for stratum in strata]


def _arguments(
    name: str, train: Cohort, task: Task, pipeline: ExpressionPipeline, options: TrainingOptions
) -> dict[str, Any]:
    """Constructor arguments of a model, as they are saved."""
    common = {"outputs": task.outputs, "dim": options.dim}
    genes = {"genes": pipeline.sizes, "gene_tokens": options.gene_tokens}
    if name == "genes":
        return {**genes, "dropout": options.gene_dropout, **common}
    histology = {
        "features": train.width,
        "dropout": options.dropout,
        "magnifications": list(train.magnifications),
        "link": task.link,
        "gate": options.gate,
        "heads": options.heads,
        "groups": options.heads,
        "dim_head": options.dim_head,
    }
    if name == "teacher":
        return {**genes, "gene_dropout": options.gene_dropout, **histology, **common}
    return {"subspaces": list(pipeline.sizes), **histology, **common}


def _stage(
    name: str,
    arguments: dict[str, Any],
    task: Task,
    options: TrainingOptions,
    targets: dict[str, DistillationTargets] | None,
) -> Stage:
    """A model with its loss and optimizer."""
    on_device = task.to(options.device)
    if name == "genes":
        return GeneStage(GeneNetwork(**arguments).to(options.device), on_device, options)
    if name == "teacher":
        return TeacherStage(Teacher(**arguments).to(options.device), on_device, options)
    return StudentStage(Student(**arguments).to(options.device), on_device, options, targets)


def _standardize(model: Teacher | Student, dataset: CohortDataset, batch_size: int) -> None:
    """Fit the patch encoders' mean and standard deviation on the training patches, a batch at a time."""
    for name in model.magnifications:
        bags = (batch.bags[name] for batch in dataset.batches(batch_size))
        encoder = model.get_submodule(f"branches.{name}.patches")
        encoder.fit(bag.patches[bag.mask] for bag in bags)  # type: ignore[operator]


def _evaluate(
    stages: Mapping[str, Stage], tests: Mapping[str, CohortDataset], task: Task, options: TrainingOptions
) -> Result:
    """Metrics and predictions of every model on every test set."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    tables = []
    for model, stage in stages.items():
        metrics[model] = {}
        for test, dataset in tests.items():
            logits = predict_logits(stage, dataset, options)
            metrics[model][test] = task.metrics(logits, dataset.labels, dataset.patients)
            table = predictions_table(task, logits, dataset.patients).merge(dataset.truth(), on="patient")
            table.insert(0, "model", model)
            table.insert(1, "test", test)
            tables.append(table)
    return Result(metrics, pd.concat(tables, ignore_index=True))
