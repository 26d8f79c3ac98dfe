"""The saved students of a run: one checkpoint, the students of all patients, or those of every fold."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .._checks import check_choice
from ..data.slide_reading import SlideReading
from ..models import Student
from ..tasks import Task
from .checkpoint import load_model
from .run_folder import FINAL

CHOICES = ("auto", "final", "folds")
PRETRAINED = "model"  # the model in a folder of save_pretrained


class SavedStudent(NamedTuple):
    """A student that is fit for prediction.

    Attributes:
        path: its checkpoint.
        model: student in evaluation mode.
        task: task for which it was trained.
        reading: options of reading slides.
    """

    path: Path
    model: Student
    task: Task
    reading: SlideReading


def load_students(path: str | Path, which: str, kinds: Mapping[str, type[Task]]) -> list[SavedStudent]:
    """Load the students whose predictions are averaged; a single one is its own average.

    In each folder of a run, the distilled student is taken where there is one, and else the student from scratch.

    Args:
        path: checkpoint of a student, a run folder or a folder in it, or a folder of
            :func:`~disentangled_mil.deploy.save_pretrained`.
        which: students of a run folder: ``"final"``, ``"folds"``, or ``"auto"`` for ``final`` if the run has it.
        kinds: class of every kind of task.

    Returns:
        The students.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a checkpoint is no student or lacks what prediction needs, students differ in magnifications or in
            the reading of slides, or the run is not finished.
    """
    check_choice("students", which, CHOICES)
    students = [_load(checkpoint, kinds) for checkpoint in _checkpoints(Path(path), which)]
    first = students[0]
    for other in students[1:]:
        # Folds know the encoder from slides of their own.
        reading = replace(other.reading, tiles=first.reading.tiles)
        if reading != first.reading or other.model.magnifications != first.model.magnifications:
            raise ValueError(f"{other.path}: must read slides as {first.path} does, so that both can be averaged")
    return students


def one_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a model: a path that is no folder, or that of the one student of a run folder.

    Args:
        path: checkpoint; a run folder: the student in ``final`` of ``train --refit``, or that of ``demo``; a folder in
            it, such as ``fold0``; or a folder of :func:`~disentangled_mil.deploy.save_pretrained`.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: the folder holds no student.
        ValueError: the folder holds the students of several folds, or the run is not finished.
    """
    found = _checkpoints(Path(path), "auto")
    if len(found) > 1:
        raise ValueError(
            f"{path}: must hold one student, got those of {len(found)} folds; name a checkpoint such as {found[0]}, "
            "or train with --refit"
        )
    return found[0]


def _checkpoints(path: Path, which: str) -> list[Path]:
    """The checkpoints of a path."""
    if not path.is_dir():
        if which != "auto":
            raise ValueError(f"{path}: must be a run folder to choose its students {which!r}, got one checkpoint")
        scratch = path.with_name("student.json")
        if path.stem == "distilled" and not path.with_suffix(".json").exists() and scratch.exists():
            raise FileNotFoundError(f"{path}: no such file, as distillation was declined there; take {scratch}")
        return [path]
    folds = [folder for folder in path.glob("fold*") if re.fullmatch(r"fold\d+", folder.name)]
    if which == "final" or (which == "auto" and (path / FINAL).is_dir()):
        folders = [path / FINAL]
    else:
        folders = sorted(folds, key=lambda folder: int(folder.name.removeprefix("fold")))
    return [_checkpoint(folder) for folder in folders or [path]]


def _checkpoint(folder: Path) -> Path:
    """The student of one training, which must be finished."""
    if any(folder.glob("*.progress.pt")):
        raise ValueError(
            f"{folder}: must hold a finished training; end it by train with --resume, or by join if folds "
            "were trained apart"
        )
    for name in ("distilled", "student", PRETRAINED):
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    raise FileNotFoundError(
        f"{folder}: must hold distilled.json or student.json, as a finished training does, or model.json"
    )


def _load(path: Path, kinds: Mapping[str, type[Task]]) -> SavedStudent:
    """Load one student with all that prediction needs."""
    saved = load_model(path, kinds=kinds)
    if not isinstance(saved.model, Student):
        raise ValueError(f"{path}: must hold a student, got a {type(saved.model).__name__}, which needs genes")
    if saved.task is None or saved.reading is None:
        lacking = "task" if saved.task is None else "reading"
        raise ValueError(f"{path}: must have the key {lacking!r}; save the student by save_model(..., {lacking}=...)")
    return SavedStudent(path, saved.model, saved.task, saved.reading)
