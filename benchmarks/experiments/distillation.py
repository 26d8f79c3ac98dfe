"""Distillation: which targets, against which controls, with how much RNA."""

from typing import Any

from .changes import LessExpression
from .experiment import Case, Experiment, Variant
from .targets import MixedWithLabels, Permuted, SmoothedLabels
from .training import Training
from .variants import (
    CROSS_FITTED,
    GENES,
    IN_SAMPLE,
    IN_SAMPLE_ALONE,
    LINEAR_SLIDES,
    OUT_OF_FOLD,
    OUT_OF_FOLD_ALONE,
    PUBLISHED,
    SCRATCH,
    SCRATCH_ALONE,
    TEACHER,
)


def _distilled(
    name: str, *, without: tuple[str, ...] = (), change: Any = None, targets: Any = None, **options: Any
) -> Variant:
    """A student with targets out of fold, and something else that differs."""
    method = Training(("distilled",), {**CROSS_FITTED, **options}, change, targets)
    return Variant(f"out-of-fold, {name}", method, without_tasks=without)


def _less_published(share: float) -> Variant:
    method = Training(("teacher", "distilled"), PUBLISHED, LessExpression(share))
    return Variant(f"in-sample, {share:.0%} of the RNA", method)


DISTILLATION = Experiment(
    "distillation",
    "Does distillation pay, and what in it pays?",
    "The student learns from scratch, from the targets of a teacher that has seen its patients (in-sample, with "
    "subspace vectors), or from targets out of fold: those of teachers that have not seen the patient. Students and "
    "teachers average a network with a linear model. Rows of a network alone leave it out; the published method is "
    "in-sample with a network alone. Targets are also mixed with labels, and joined by the subspaces' shares of the "
    "logits. Controls keep the distribution of the targets but not the patient: permuted over all patients, permuted "
    "within the class, and labels smoothed to the same entropy. Half and a quarter of the RNA are left. The teacher, "
    "which sees the RNA of the test patients, is the ceiling, and the linear model on slides the floor. Differences "
    "are from the student from scratch.",
    (
        Case("tcga_stad", "msi"),
        Case("tcga_stad", "subtype"),
        Case("tcga_gbmlgg", "diagnosis"),
        Case("tcga_gbmlgg", "grading"),
        Case("tcga_gbmlgg", "survival"),
        Case("planted", "diagnosis"),
    ),
    (
        LINEAR_SLIDES,
        SCRATCH,
        IN_SAMPLE,
        OUT_OF_FOLD,
        SCRATCH_ALONE,
        IN_SAMPLE_ALONE,
        OUT_OF_FOLD_ALONE,
        _distilled("with shares", share_weight=1.0),
        _distilled("half labels", without=("survival",), targets=MixedWithLabels(0.5), share_weight=0.0),
        _distilled("calibrated", calibrate=True),
        _distilled("permuted", targets=Permuted()),
        _distilled("permuted within the class", targets=Permuted(within=True)),
        _distilled("smoothed labels", without=("survival",), targets=SmoothedLabels(), share_weight=0.0),
        _distilled("50% of the RNA", change=LessExpression(0.5)),
        _distilled("25% of the RNA", change=LessExpression(0.25)),
        _less_published(0.5),
        _less_published(0.25),
        GENES,
        TEACHER,
    ),
    "scratch",
    pairs=(
        ("out-of-fold", "in-sample"),
        ("out-of-fold", "out-of-fold, permuted"),
        ("out-of-fold", "out-of-fold, smoothed labels"),
        ("in-sample, network alone", "scratch, network alone"),
        ("out-of-fold, network alone", "scratch, network alone"),
        ("scratch", "linear, slides"),
    ),
    columns=("headroom", "headroom, low"),
)
