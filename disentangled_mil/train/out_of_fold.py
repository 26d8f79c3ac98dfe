"""What a student can gain from a teacher, measured inside the training patients, and targets that it has not seen.

Teachers and linear models are cross-fitted over the same inner folds. The predictions of the teachers are the targets
of distillation. The difference of both is the headroom: what is lost by slides alone, as far as a linear model tells.

The task (weights of classes, intervals of time) and the expression pipeline, which sees no labels, are fitted once on
all training patients, because student and teachers must share them.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.folds import pool_rare
from ..losses import DistillationTargets, balance_shares
from ..tasks import select_target
from .building import StageBuilder
from .calibration import fit_temperature
from .comparison import gain, headline_draws
from .cross_fitting import Part, cross_fit, part_name
from .datasets import CohortDataset
from .linear import fit_linear, mean_features
from .loop import train_stage
from .options import TrainingOptions

FOLDER = "teachers"
# Options that change no prediction of a teacher's part.
OF_STUDENTS = (
    "device",
    "teacher_repeats",
    "task_warmup",
    "prediction_weight",
    "representation_weight",
    "share_weight",
    "temperature",
    "distill",
    "distillation_targets",
    "calibrate",
)


class Headroom(NamedTuple):
    """What there is to gain from the teacher, over the training patients with expression, out of fold.

    Attributes:
        metric: name of the metric.
        patients: number of patients.
        teacher: metric of the teachers out of fold.
        linear: metric of the linear models on the slides out of fold.
        difference: gain of the teachers over the linear models; above 0 the teachers are better.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
    """

    metric: str
    patients: int
    teacher: float
    linear: float
    difference: float
    low: float
    high: float


class OutOfFold(NamedTuple):
    """Targets of distillation, and what they promise.

    Attributes:
        targets: targets of every sample, by magnification.
        headroom: what there is to gain.
    """

    targets: dict[str, DistillationTargets]
    headroom: Headroom


def part_files(folder: Path, options: TrainingOptions) -> list[Path]:
    """The files of all parts in the folder of a split, without suffix."""
    pairs = [(repeat, fold) for repeat in range(options.teacher_repeats) for fold in range(options.teacher_folds)]
    return [folder / FOLDER / part_name(*pair) for pair in pairs]


def distill_out_of_fold(
    builder: StageBuilder,
    train: CohortDataset,
    validation: CohortDataset | None,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> OutOfFold:
    """Cross-fit teachers and linear models on the training samples with expression.

    Args:
        builder: what the models of the split have in common.
        train: training samples; those without expression get no target.
        validation: samples with expression that choose the teachers' epochs.
        folder: folder of the split; the teachers' predictions, logs and states go to ``teachers`` in it.
        resume: whether finished parts and interrupted trainings in ``folder`` are continued.
        quiet: whether no progress is shown.

    Returns:
        Targets of the training samples, and the headroom.

    Raises:
        ValueError: there are fewer patients with expression than folds, or a stored part is of another run.
    """
    options, task = builder.options, builder.task
    store = folder / FOLDER
    store.mkdir(parents=True, exist_ok=True)
    strata = _strata(train, builder)

    def teach(part: Part) -> dict[str, Tensor]:
        rows = train.subset(part.rows)
        stage = builder.teacher(rows, seed=part.seed)
        train_stage(part.name, stage, rows, validation, stage.options, store, resume=resume, quiet=quiet)
        outputs = stage.outputs(train)
        predictions = {"logits": outputs.logits}
        for name, branch in outputs.branches.items():
            predictions[f"{name}.logits"] = branch.logits
            predictions[f"{name}.shares"] = balance_shares(branch.shares, part.rows)
        return predictions

    features = mean_features(train)

    def fit(part: Part) -> dict[str, Tensor]:
        model = fit_linear(features[part.rows], select_target(train.target, part.rows), task)
        return {"logits": model(features)}

    key = repr({"options": _deciding(options), "expression": builder.pipeline.digest, "task": task.state()})
    apart = partial(
        cross_fit,
        patients=train.patients,
        strata=strata,
        folds=options.teacher_folds,
        repeats=options.teacher_repeats,
        seed=options.seed,
        present=train.paired,
    )
    teachers = apart(teach, store=store, key=key, resume=resume, quiet=quiet)
    linear = apart(fit, quiet=True)
    paired = torch.nonzero(train.paired)[:, 0]
    headroom = _headroom(builder, train.subset(paired), teachers["logits"][paired], linear["logits"][paired])
    targets = {}
    for name in builder.cohort.magnifications:
        logits, shares = teachers[f"{name}.logits"], teachers[f"{name}.shares"]
        if options.calibrate:
            temperature = fit_temperature(task, logits[paired], select_target(train.target, paired))
            logits, shares = logits / temperature, shares / temperature
        targets[name] = DistillationTargets(logits, train.paired, shares=shares).to(options.device)
    return OutOfFold(targets, headroom)


def _strata(train: CohortDataset, builder: StageBuilder) -> list[str]:
    """The stratum of every sample; those with fewer patients than folds are pooled."""
    patients = list(
        dict.fromkeys(patient for patient, paired in zip(train.patients, train.paired, strict=True) if paired)
    )
    folds = builder.options.teacher_folds
    if len(patients) < folds:
        raise ValueError(
            f"teacher_folds must be at most the number of training patients with expression, {len(patients)}, "
            f"got {folds}"
        )
    of_samples = dict(zip(train.patients, map(str, builder.task.strata(train.labels)), strict=True))
    pooled = dict(zip(patients, pool_rare([of_samples[patient] for patient in patients], folds), strict=True))
    return [pooled.get(patient, of_samples[patient]) for patient in train.patients]


def _headroom(builder: StageBuilder, samples: CohortDataset, teacher: Tensor, linear: Tensor) -> Headroom:
    task = builder.task
    draws = [headline_draws(task, logits, samples.labels, samples.patients) for logits in (teacher, linear)]
    difference, low, high = gain(task, *draws)
    return Headroom(
        metric=next(iter(task.headline)),
        patients=len(set(samples.patients)),
        teacher=float(draws[0][0]),
        linear=float(draws[1][0]),
        difference=difference,
        low=low,
        high=high,
    )


def _deciding(options: TrainingOptions) -> dict[str, object]:
    """The options that decide the predictions of a part: neither the number of repeats, nor those of students."""
    return {name: value for name, value in asdict(options).items() if name not in OF_STUDENTS}
