"""All models of the method on the same training patients: everything is fitted on these patients alone."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._checks import check_choice
from .._exit_status import work_begins
from ..data.cohort import Cohort, columns_of_labels
from ..data.folds import inner_split, pool_rare
from ..losses import DistillationTargets
from ..report.tables import headroom_line
from ..tasks import Task
from .bag_cache import BagCache
from .building import StageBuilder
from .checkpoint import save_model
from .cross_fitting import part_name
from .datasets import CohortDataset
from .linear import BOTH, SLIDES, choose_penalties, fit_linear, task_loss_of, vectors_of
from .loop import predict_logits, train_stage
from .options import TrainingOptions
from .out_of_fold import Headroom, check_teacher_folds, distill_out_of_fold
from .processes import by_first, rank
from .progress import PlannedStage, announce
from .stages import GeneStage, StudentStage, TeacherStage

NETWORKS = ("genes", "teacher", "student", "distilled")
MODELS = ("linear", *NETWORKS)
TAKE_GENES = ("genes", "teacher")
WITHOUT_EXPRESSION = ("linear", "student")

AlterTargets: TypeAlias = Callable[[dict[str, DistillationTargets], CohortDataset], dict[str, DistillationTargets]]
Predict: TypeAlias = Callable[[CohortDataset], Tensor]


class Trained(NamedTuple):
    """Models that are trained on the same patients.

    Attributes:
        task: task that was fitted on them.
        predict: function from samples to logits, by model.
        headroom: possible gain from the teacher; None where it was not measured.
        dataset: function that prepares other patients of the cohort for the models.
    """

    task: Task
    predict: Mapping[str, Predict]
    headroom: Headroom | None
    dataset: Callable[[Cohort], CohortDataset]


def train_models(
    cohort: Cohort,
    name: str,
    options: TrainingOptions,
    folder: str | Path,
    *,
    models: Collection[str] | None = None,
    alter_targets: AlterTargets | None = None,
    cache: BagCache | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Trained:
    """Train models on all patients of a cohort who have the labels of a task, and save the networks.

    Args:
        cohort: training patients; those without expression serve the students only.
        name: name of the task.
        options: options of the training.
        folder: folder for checkpoints, logs and states.
        models: models to train, some of ``MODELS``; by default all, or ``WITHOUT_EXPRESSION`` if no patient has
            expression.
        alter_targets: function from the targets of distillation and the training samples to other targets, for
            instance permuted ones as a control.
        cache: cache of bags.
        resume: flag that continues an interrupted training on the same patients.
        quiet: flag that hides the progress.

    Returns:
        The models.

    Raises:
        ValueError: patients, labels, expression or options do not allow the task, or a model is unknown.
    """
    folder = Path(folder)
    models = models_for(cohort, options, models)
    by_first(lambda: folder.mkdir(parents=True, exist_ok=True))
    task = cohort.fit_task(name)
    pipeline = cohort.fit_expression() if cohort.paired else None
    cache = cache or BagCache()

    def dataset(part: Cohort) -> CohortDataset:
        return CohortDataset(part, name, task, pipeline, cache=cache)

    learn, choose = _inner_split(cohort, name, options)
    everyone, choose_everyone = dataset(learn), None if choose is None else dataset(choose)
    paired, choose_paired = everyone.with_expression(), choose_everyone and choose_everyone.with_expression()
    distills = "distilled" in models and options.distill != "never"
    measures = distills and (options.distill == "auto" or options.distillation_targets == "out_of_fold")
    if measures:
        check_teacher_folds(everyone, options)
    work_begins()
    penalties = {}
    if "linear" in models or measures or (options.linear and (distills or "student" in models)):
        announce("the penalties of the linear model on slides", quiet=quiet)
        penalties["student"] = by_first(lambda: choose_penalties(everyone, task, SLIDES, seed=options.seed))
    if measures or (options.linear and "teacher" in models):
        announce("the penalties of the linear model on slides and genes", quiet=quiet)
        penalties["teacher"] = by_first(lambda: choose_penalties(paired, task, BOTH, seed=options.seed))
    builder = StageBuilder(cohort, task, pipeline, options, penalties)
    predict: dict[str, Predict] = {}

    def train(
        model: str, stage: GeneStage | TeacherStage | StudentStage, learn: CohortDataset, choose: CohortDataset | None
    ) -> None:
        train_stage(model, stage, learn, choose, options, folder, resume=resume, quiet=quiet)
        predict[model] = partial(_predict, stage, options)
        if rank():
            return
        save_model(
            folder / model,
            stage.model,
            task=task,
            reading=cohort.reading(),
            expression=pipeline if model in TAKE_GENES else None,
            notes={"task_name": name, "name": model, "training": asdict(options)},
        )

    if "linear" in models:
        rows, loss = torch.arange(len(everyone)), task_loss_of(everyone, task)
        vectors = vectors_of(everyone, SLIDES)
        linear = by_first(lambda: fit_linear(vectors, rows, loss, task.outputs, penalties["student"]))
        predict["linear"] = lambda test: linear(vectors_of(test, SLIDES))
    if "genes" in models:
        train("genes", builder.genes(), paired.without_slides(), choose_paired and choose_paired.without_slides())
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
        train("distilled", builder.student(everyone, targets), everyone, choose_everyone)
    return Trained(task, predict, headroom, dataset)


def _predict(stage: GeneStage | TeacherStage | StudentStage, options: TrainingOptions, test: CohortDataset) -> Tensor:
    return predict_logits(stage, test.without_slides() if isinstance(stage, GeneStage) else test, options)


def models_for(cohort: Cohort, options: TrainingOptions, models: Collection[str] | None = None) -> Collection[str]:
    """The models that can be trained on a cohort, or those that are wanted after a check.

    Args:
        cohort: training patients.
        options: options of the training.
        models: models that are wanted; by default all that are possible.

    Returns:
        Some of ``MODELS``.

    Raises:
        ValueError: a model is unknown, or needs a teacher or expression that is not there.
    """
    for model in models or ():
        check_choice("models", model, MODELS)
    if not cohort.paired:
        if needy := [model for model in models or () if model not in WITHOUT_EXPRESSION]:
            raise ValueError(f"models must be linear or student for patients without expression, got {needy[0]!r}")
        if options.distill == "always":
            raise ValueError("distill must be 'auto' or 'never' for patients without expression, got 'always'")
        return WITHOUT_EXPRESSION if models is None else models
    models = MODELS if models is None else models
    needs = "distilled" in models and options.distill != "never" and options.distillation_targets == "in_sample"
    if needs and "teacher" not in models:
        raise ValueError("models must hold 'teacher' for distillation_targets = 'in_sample', got " + ", ".join(models))
    return models


def plan_stages(
    cohort: Cohort, name: str, options: TrainingOptions, models: Collection[str] | None = None
) -> list[PlannedStage]:
    """The networks that :func:`train_models` trains, in its order, for the time left; it may decline to distill.

    Args:
        cohort: training patients.
        name: name of the task.
        options: options of the training.
        models: models that are wanted; by default all that are possible.

    Returns:
        The stages.
    """
    models = models_for(cohort, options, models)
    labeled = set(cohort.labels(name).index)
    share = options.epochs * (1 - options.validation)
    everyone = round(share * sum(sample.patient in labeled for sample in cohort.samples))
    paired = round(share * sum(sample.patient in labeled & cohort.paired for sample in cohort.samples))
    distills = "distilled" in models and options.distill != "never"
    stages = [PlannedStage("genes", "network on genes", 0)] if "genes" in models else []
    if "teacher" in models:
        stages.append(PlannedStage("teacher", "teacher", paired))
    if distills and (options.distill == "auto" or options.distillation_targets == "out_of_fold"):
        parts = [part_name(r, f) for r in range(options.teacher_repeats) for f in range(options.teacher_folds)]
        work = paired * (options.teacher_folds - 1) // options.teacher_folds
        stages += [PlannedStage(part, f"teacher out of fold, {part}", work) for part in parts]
    if "student" in models:
        stages.append(PlannedStage("student", "student", everyone))
    if distills:
        stages.append(PlannedStage("distilled", "distilled student", everyone))
    return stages


def _inner_split(train: Cohort, name: str, options: TrainingOptions) -> tuple[Cohort, Cohort | None]:
    """Training patients -> those who teach and those who choose the epoch."""
    if options.validation == 0:
        return train, None
    labels = train.labels(name)
    classes = train.definition(name).kind.strata(columns_of_labels(labels))
    # Patients with and without expression are split alike, so that both sides choose the teacher and the student.
    strata = [f"{stratum} {patient in train.paired}" for patient, stratum in zip(labels.index, classes, strict=True)]
    if train.paired and options.validation * len(train.paired) < 1:
        raise ValueError(
            f"validation must leave at least one patient with expression to choose the epoch, got "
            f"{options.validation} of {len(train.paired)}"
        )
    split = inner_split(list(labels.index), pool_rare(strata, 2), fraction=options.validation, seed=options.seed)
    return train.subset(split.train), train.subset(split.test)
