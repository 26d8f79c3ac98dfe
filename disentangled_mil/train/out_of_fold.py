"""What a student can gain from a teacher, measured inside the training patients, and targets that it has not seen.

Teachers and linear models are cross-fitted over the same inner folds. The predictions of the teachers are the targets
of distillation. The difference of both is the headroom: what is lost by slides alone, as far as a linear model tells.

The task (weights of classes, intervals of time) and the expression pipeline are fitted once on all training patients,
because student and teachers must share them. The pipeline sees no labels. The penalties of the linear models are
chosen once, too: two numbers that depend on all labels.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..losses import DistillationTargets, balance_shares
from ..tasks import select_target
from .building import StageBuilder
from .calibration import fit_temperature
from .cohort_digest import expression_digest
from .comparison import gain, headline_draws
from .cross_fitting import Part, part_name
from .datasets import CohortDataset
from .inner_folds import CrossFit, over_folds
from .linear import SLIDES, linear_teacher, task_loss_of, vectors_of
from .loop import train_stage
from .options import WITHOUT_EFFECT, TrainingOptions
from .processes import by_first
from .progress import announce

FOLDER = "teachers"
# Options that change no prediction of a teacher's part.
OF_STUDENTS = (
    *WITHOUT_EFFECT,
    "teacher_repeats",
    "student_weight_decay",
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

    @property
    def promises(self) -> bool:
        """Whether distillation is likely to pay: the teachers are better than linear models on the slides."""
        return self.low > 0


class OutOfFold(NamedTuple):
    """Targets of distillation, and what they promise.

    Attributes:
        targets: targets of every sample, by magnification.
        headroom: possible gain from the teacher.
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
    folder: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> OutOfFold:
    """Cross-fit teachers and linear models on the training samples with expression.

    Args:
        builder: builder of the models of the split.
        train: training samples; those without expression get no target.
        validation: samples with expression that choose the teachers' epochs.
        folder: folder of the split; the teachers' predictions, logs and states go to ``teachers`` in it.
        resume: flag that uses finished parts and continues interrupted trainings in ``folder``.
        quiet: flag that hides the progress.

    Returns:
        Targets of the training samples, and the headroom.

    Raises:
        ValueError: there are fewer patients with expression than folds, or a stored part is of another run.
    """
    options, task = builder.options, builder.task
    check_teacher_folds(train, options)
    store = Path(folder) / FOLDER
    by_first(lambda: store.mkdir(parents=True, exist_ok=True))

    present = {name: train.present(name) for name in builder.cohort.magnifications}
    small = train.thinned(options.teacher_tokens)
    small_validation = None if validation is None else validation.thinned(options.teacher_tokens)

    def teach(part: Part) -> dict[str, Tensor]:
        rows = small.subset(part.rows)
        stage = builder.teacher(rows, seed=part.seed)
        train_stage(part.name, stage, rows, small_validation, stage.options, store, resume=resume, quiet=quiet)
        outputs = stage.outputs(small)
        shares = {
            f"{name}.shares": balance_shares(branch.shares, part.rows[present[name][part.rows]])
            for name, branch in outputs.branches.items()
        }
        return {"logits": outputs.logits, **shares}

    key = repr({"options": _deciding(options), "expression": _expression(builder), "task": _rounded(task.state())})
    apart = over_folds(
        train,
        task,
        folds=options.teacher_folds,
        repeats=options.teacher_repeats,
        seed=options.seed,
        present=train.paired,
    )
    teachers = apart(teach, store=store, key=key, resume=resume, quiet=True)  # the bars of the stages say where it is
    paired = torch.nonzero(train.paired)[:, 0]
    logits, temperature = teachers["logits"], 1.0
    if options.calibrate:
        temperature = by_first(lambda: fit_temperature(task, logits[paired], select_target(train.target, paired)))
    targets = {
        name: DistillationTargets(
            logits / temperature, train.paired & there, shares=teachers[f"{name}.shares"] / temperature
        )
        for name, there in present.items()
    }
    headroom = by_first(lambda: _headroom(builder, train, apart, logits, quiet))
    return OutOfFold({name: each.to(options.device) for name, each in targets.items()}, headroom)


def check_teacher_folds(train: CohortDataset, options: TrainingOptions) -> None:
    """Check that every inner fold has a patient with expression.

    Args:
        train: training samples.
        options: options of the training.

    Raises:
        ValueError: there are fewer patients with expression than folds.
    """
    taught = len({patient for patient, paired in zip(train.patients, train.paired, strict=True) if paired})
    if taught < options.teacher_folds:
        raise ValueError(
            f"teacher_folds must be at most the number of training patients with expression, {taught}, "
            f"got {options.teacher_folds}"
        )


def _headroom(builder: StageBuilder, train: CohortDataset, apart: CrossFit, teacher: Tensor, quiet: bool) -> Headroom:
    """The gain of the teachers over linear models."""
    task, penalties = builder.task, builder.penalties["student"]
    announce("headroom: linear models out of fold, and the interval of the gain over patients", quiet=quiet)
    fit = linear_teacher(vectors_of(train, SLIDES), task_loss_of(train, task), task.outputs, penalties)
    paired = torch.nonzero(train.paired)[:, 0]
    samples = train.subset(paired)
    linear = apart(fit, quiet=True)["logits"]
    draws = [headline_draws(task, logits[paired], samples.labels, samples.patients) for logits in (teacher, linear)]
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


def _expression(builder: StageBuilder) -> str | None:
    """The digest of the training patients' expression; None if no patient has any."""
    table = builder.cohort.expression
    return None if table is None or builder.pipeline is None else expression_digest(table, builder.pipeline)


def _rounded(value: Any) -> Any:
    """JSON values whose numbers have nine digits: the last ones of quantiles depend on the version of NumPy."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return f"{value:.9g}" if isinstance(value, float) else value


def _deciding(options: TrainingOptions) -> dict[str, object]:
    """The options that decide the predictions of a part: neither the number of repeats, nor those of students."""
    return {name: value for name, value in asdict(options).items() if name not in OF_STUDENTS}
