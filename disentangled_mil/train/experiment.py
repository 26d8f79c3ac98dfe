"""The whole method on one split: genes alone, teacher, student from scratch, distilled student."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from ..bags import TokenSet
from ..data.cohort import Cohort, StoredBag, task_labels
from ..data.expression import ExpressionPipeline
from ..data.folds import inner_split
from ..losses import DistillationTargets
from ..models import GeneNetwork, Student, Teacher
from ..tasks import Classification, DiscreteSurvival, Task
from .checkpoint import save_model
from .examples import BagMemory, Examples
from .loop import predict_logits, train_stage
from .options import TrainingOptions
from .predictions import evaluate, predictions_table
from .stages import GeneStage, Stage, StudentStage, TeacherStage

MODELS = ("genes", "teacher", "student", "distilled")


class Split(NamedTuple):
    """Who trains and who is tested.

    Attributes:
        train: training patients; those without expression serve the students only.
        tests: patients to evaluate on, by name of the test set; all with expression.
    """

    train: Cohort
    tests: Mapping[str, Cohort]


class Result(NamedTuple):
    """What came of one split.

    Attributes:
        metrics: {model: {test set: {metric: value}}}.
        predictions: one row per model, test set and patient.
    """

    metrics: dict[str, dict[str, dict[str, float]]]
    predictions: pd.DataFrame


def fit_task(cohort: Cohort, label: str, options: TrainingOptions) -> Task:
    """The task, with class weights or bins fitted on training patients."""
    labels = task_labels(cohort, label)
    if label == "survival":
        return DiscreteSurvival.fit(labels["time"].to_numpy(), event=labels["event"].to_numpy(), bins=options.bins)
    return Classification.fit(labels.tolist())


def run_split(
    split: Split,
    label: str,
    options: TrainingOptions,
    folder: Path,
    *,
    memory: BagMemory | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Train and evaluate all four models on one split; everything is fitted on its training patients.

    Args:
        split: training and test patients.
        label: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        options: of the training.
        folder: where checkpoints, logs and states go.
        memory: bags that were read already.
        resume: continue an interrupted run of the same split.
        quiet: show no progress bars.

    Returns:
        Metrics and predictions.

    Raises:
        ValueError: patients, labels or expression do not allow the task, or a test patient trains or has no
            expression.
    """
    _check_tests(split)
    folder.mkdir(parents=True, exist_ok=True)
    task = fit_task(split.train, label, options)
    pipeline = split.train.fit_expression()
    memory = memory or BagMemory()

    def examples(cohort: Cohort) -> Examples:
        return Examples(cohort, task, label, pipeline, memory=memory)

    learn, choose = _inner_split(split.train, label, options)
    everyone, paired = examples(learn), examples(learn.with_expression())
    choose_everyone = examples(choose) if choose is not None else None
    choose_paired = examples(choose.with_expression()) if choose is not None else None
    tests = {name: examples(cohort) for name, cohort in split.tests.items()}

    stages: dict[str, Stage] = {}
    for name in MODELS:
        torch.manual_seed(options.seed)
        arguments = _arguments(name, split.train, task, pipeline, options)
        teacher = stages.get("teacher")
        targets = teacher.targets(everyone) if name == "distilled" and isinstance(teacher, TeacherStage) else None
        stage = _stage(name, arguments, task, options, targets)
        if isinstance(stage, (TeacherStage, StudentStage)):
            _standardize(stage.model, paired if name == "teacher" else everyone, options.batch_size)
        sees_genes = name in ("genes", "teacher")
        train_stage(
            name,
            stage,
            paired if sees_genes else everyone,
            choose_paired if sees_genes else choose_everyone,
            options,
            folder,
            resume=resume,
            quiet=quiet,
        )
        stages[name] = stage
        kind = "student" if name == "distilled" else name
        extra = {"label": label, "task": task.state(), "cohort": _reading(split.train)}
        if sees_genes:
            extra["expression"] = pipeline.state()
        save_model(folder / name, stage.model, kind, arguments, {**extra, "training": asdict(options)})
    return _evaluate(stages, tests, task, options)


def _check_tests(split: Split) -> None:
    """Test patients are new, and every model can predict for them."""
    for name, cohort in split.tests.items():
        paired = () if cohort.expression is None else cohort.expression.index
        if known := set(cohort.patients) & set(split.train.patients):
            raise ValueError(f"tests[{name!r}] must hold no training patient, got {min(known)!r}")
        if unpaired := set(cohort.patients) - set(paired):
            raise ValueError(f"tests[{name!r}] must have expression of every patient, got none for {min(unpaired)!r}")


def _reading(cohort: Cohort) -> dict[str, Any]:
    """How the cohort's bags are read from files, for prediction on new slides."""
    bag = next(iter(cohort.samples[0].bags.values()))
    stored = bag if isinstance(bag, StoredBag) else StoredBag((Path(),))
    return {
        "bag": cohort.unit,
        "transform": stored.transform,
        "drop_augmented": stored.drop_augmented,
        "sets": [name for name, bag in cohort.samples[0].load().items() if isinstance(bag.grid, TokenSet)],
    }


def _inner_split(train: Cohort, label: str, options: TrainingOptions) -> tuple[Cohort, Cohort | None]:
    """Training patients -> those who teach and those who choose the epoch."""
    if options.validation == 0:
        return train, None
    labels = task_labels(train, label)
    strata = labels["event"] if isinstance(labels, pd.DataFrame) else labels
    expression = train.expression.index if train.expression is not None else ()
    # Those with and without expression are split alike, so that teacher and student are chosen on as many.
    strata = [f"{stratum} {patient in expression}" for patient, stratum in strata.items()]
    if options.validation * len(train.with_expression().patients) < 1:
        raise ValueError(
            f"validation must leave at least one patient with expression to choose the epoch, got "
            f"{options.validation} of {len(train.with_expression().patients)}"
        )
    fold = inner_split(list(labels.index), _pool_rare(strata), fraction=options.validation, seed=options.seed)
    return train.subset(fold.train), train.subset(fold.test)


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
        "kind": task.kind,
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


def _standardize(model: Teacher | Student, examples: Examples, batch_size: int) -> None:
    """Fit the patch encoders' mean and standard deviation on the training patches, a batch at a time."""
    for name in model.magnifications:
        bags = (batch.bags[name] for batch in examples.batches(batch_size))
        encoder = model.get_submodule(f"branches.{name}.patches")
        encoder.fit(bag.patches[bag.mask] for bag in bags)  # type: ignore[operator]


def _evaluate(
    stages: Mapping[str, Stage], tests: Mapping[str, Examples], task: Task, options: TrainingOptions
) -> Result:
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    tables = []
    for name, stage in stages.items():
        metrics[name] = {}
        for test, examples in tests.items():
            logits = predict_logits(stage, examples, options)
            metrics[name][test] = evaluate(task, logits, examples)
            table = predictions_table(task, logits, examples.patients).merge(examples.truth(), on="patient")
            table.insert(0, "model", name)
            table.insert(1, "test", test)
            tables.append(table)
    return Result(metrics, pd.concat(tables, ignore_index=True))
