"""Predictions of saved students for new slides."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .._checks import check_names
from .._files import replacing
from .._tables import read_rows
from ..bags import Bag, collate_samples
from ..data.cohort import Sample, StoredBag
from ..data.slide_reading import SlideReading, TileFacts
from ..data.slides import SUFFIXES, SlideSource, difference, slide_files, slide_name
from ..tasks import KINDS, Task
from .predictions import predictions_table
from .saved_students import SavedStudent, load_students
from .threads import Threads, using_threads


def predict_slides(
    model: Path,
    folders: Mapping[str, Path],
    out: Path,
    *,
    students: str = "auto",
    patients: Path | None = None,
    steps: Mapping[str, float] | None = None,
    device: str = "cpu",
    threads: Threads = None,
    allow_other_encoder: bool = False,
    quiet: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> pd.DataFrame:
    """Predict for every slide, and write one row per patient.

    A slide must be there at all magnifications. If the student was trained with ``missing = "allow"``, one is enough.
    The metadata of all slides are checked before the first one is computed. A slide whose values are refused later does
    not discard the others: their rows are written, and the error at the end names it.

    Of a run folder, the student of all patients in ``final`` predicts if there is one. Else the predictions of the
    folds' students are averaged: probabilities of classes, or risks. Hazards are averaged if all folds have the same
    intervals, and left out otherwise.

    Args:
        model: checkpoint of a student, or a run folder.
        folders: folder of slides for every magnification of the student.
        out: CSV to write, its folder is made: class probabilities and the predicted class, or hazards and risk.
        students: students of a run folder, ``"final"`` or ``"folds"``; ``"auto"`` for the rule above.
        patients: CSV with the columns ``slide`` and ``patient``, which names the slides of the folders, and may
            name others; without it every slide is a patient. A student of ``bag = "patient"`` needs it.
        steps: side of a grid cell in the unit of the coordinates, by magnification; by default from the files.
        device: device of the computation.
        threads: number of threads, ``"auto"`` to choose for every sample, or None for PyTorch's setting; see
            :mod:`.threads`.
        allow_other_encoder: whether slides whose files name another encoder than those of training are read all the
            same.
        quiet: whether no progress is shown.
        kinds: class of every kind of task.

    Returns:
        The table that was written.

    Raises:
        FileNotFoundError: a file or folder is missing.
        OSError: ``out`` cannot be written.
        ValueError: the checkpoint is no student, ``out`` is the table of patients, a magnification is missing,
            slides and patients do not fit, or a slide cannot be read, has another feature width, encoder or
            magnification, or has no coordinates where those of training had.
    """
    saved = load_students(model, students, kinds)
    path, student, _, reading = saved[0]
    if out.is_dir():
        raise IsADirectoryError(f"{out}: must be a file to write, got a folder")
    if patients is None and reading.unit == "patient":
        raise ValueError(
            f"{path}: learned from all slides of a patient in one bag, so it needs --patients, a CSV with the columns "
            "slide and patient"
        )
    if patients is not None and out.exists() and patients.exists() and out.samefile(patients):
        raise ValueError(f"{out}: must be another file than the table of patients, which would be overwritten")
    width = student.arguments["features"]
    samples = _samples(student.magnifications, folders, patients, steps or {}, reading, width)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out.parent}: must be a folder that may be written to")
    if not quiet:
        names = ", ".join(str(each.path) for each in saved)
        print(f"mean of {len(saved)} students: {names}" if len(saved) > 1 else f"student: {names}", file=sys.stderr)
    samples = _all_checked(samples, width, reading, allow_other_encoder=allow_other_encoder, quiet=quiet)
    logits, failures = _predict(saved, samples, device, threads, quiet=quiet)
    # A patient lacks a slide that was refused, so the mean of the others is not what was asked.
    whole = [row for row, sample in enumerate(samples) if sample.patient not in failures]
    if not whole:
        raise next(iter(failures.values()))
    task = saved[0].task
    stacked = [torch.stack([logits[row][number] for row in whole]) for number in range(len(saved))]
    predictions = task.mean_predictions([each.task for each in saved], stacked)
    table = predictions_table(task, predictions, [samples[row].patient for row in whole])
    with replacing(out) as temporary:
        table.to_csv(temporary, index=False)
    if failures:
        reasons = "; ".join(f"{patient}: {error}" for patient, error in failures.items())
        raise ValueError(f"{out}: holds {len(table)} patients, without {len(failures)} that were refused: {reasons}")
    return table


def _predict(
    saved: Sequence[SavedStudent], samples: Sequence[Sample], device: str, threads: Threads, *, quiet: bool
) -> tuple[dict[int, list[Tensor]], dict[str, Exception]]:
    """Logits of every student by sample, and the first error of every patient of whom a slide is refused."""
    logits: dict[int, list[Tensor]] = {}
    failures: dict[str, Exception] = {}
    models = [each.model.to(device) for each in saved]
    for row, sample in enumerate(tqdm(samples, desc="predicting", unit="sample", disable=quiet)):
        try:
            bags = {name: bag.to(device) for name, bag in collate_samples([sample.load()]).items()}
        except (ValueError, OSError) as error:
            failures.setdefault(sample.patient, error)
            continue
        patches = sum(bag.patches.shape[1] for bag in bags.values())
        with torch.no_grad(), using_threads(threads, [patches], batch_size=1):
            logits[row] = [model(bags).logits[0].cpu() for model in models]
    return logits, failures


def _all_checked(
    samples: Sequence[Sample], width: int, reading: SlideReading, *, allow_other_encoder: bool, quiet: bool
) -> list[Sample]:
    """Compare all files with training before the first prediction; the first error counts the others."""
    checked, errors = [], []
    for sample in tqdm(samples, desc="checking slides", unit="sample", disable=quiet):
        try:
            checked.append(_checked(sample, width, reading, allow_other_encoder=allow_other_encoder))
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise ValueError(f"{errors[0]} (and {len(errors) - 1} more of {len(samples)} are refused)") from errors[0]
    if errors:
        raise errors[0]
    return checked


def _checked(sample: Sample, width: int, reading: SlideReading, *, allow_other_encoder: bool) -> Sample:
    """Compare a sample's metadata with training; files without tiles become empty bags, where these are allowed."""
    bags, empty = dict(sample.bags), []
    for name, bag in sample.bags.items():
        if isinstance(bag, StoredBag):
            source = bag.source()
            if source.tokens:
                known = reading.tiles.get(name, TileFacts())
                _check_source(name, bag, source, width, known, allow_other_encoder=allow_other_encoder)
            else:
                bags[name] = Bag.empty(width, placed=not bag.as_set)
                empty.append(source.files[0])
    if empty and (reading.missing == "error" or all(isinstance(bag, Bag) for bag in bags.values())):
        raise ValueError(f"{empty[0]}: must hold at least one patch, got none; take the slide out of the folder")
    return replace(sample, bags=bags)


def _check_source(
    name: str,
    bag: StoredBag,
    source: SlideSource,
    width: int,
    known: TileFacts,
    *,
    allow_other_encoder: bool,
) -> None:
    """Compare what the files of one magnification say with what is known from training."""
    path = source.files[0]
    if source.width != width:
        raise ValueError(f"{path}: must have {width} features per patch, as in training, got {source.width}")
    if not bag.as_set and not source.placed:
        raise ValueError(f"{path}: must have coordinates, as in training, got none")
    encoder = None if allow_other_encoder else known.encoder
    reason = difference(source, encoder, known.magnification, known.mpp)
    if reason is not None:
        remedy = "; --allow-other-encoder predicts all the same" if "encoder" in reason else ""
        raise ValueError(f"{path}: {reason} as in training at {name}{remedy}")


def _samples(
    magnifications: Sequence[str],
    folders: Mapping[str, Path],
    patients: Path | None,
    steps: Mapping[str, float],
    reading: SlideReading,
    width: int,
) -> list[Sample]:
    """The slides of the folders as samples, with the options of training; empty bags where files are missing."""
    check_names("slides", folders, magnifications)
    if unknown := sorted(set(steps) - set(magnifications)):
        raise ValueError(f"steps must be of the magnifications {', '.join(magnifications)}, got {unknown[0]!r}")
    found = {}
    for name, folder in folders.items():
        found[name] = slide_files(folder)
    slides = sorted(set[str]().union(*found.values()))
    if not slides:
        folder_names = ", ".join(map(str, folders.values()))
        raise ValueError(f"{folder_names}: must hold slides ({', '.join(SUFFIXES)}), got none")
    for name, files in found.items():
        if reading.missing == "error" and (missing := set(slides) - set(files)):
            raise ValueError(
                f"{folders[name]}: must hold every slide, but lacks {min(missing)}.h5 and {len(missing) - 1} others"
            )
    owner = _owners(patients, slides)
    groups: dict[str, list[str]] = {}
    for slide in slides:
        groups.setdefault(owner[slide] if reading.unit == "patient" else slide, []).append(slide)

    def bag(name: str, members: Sequence[str]) -> StoredBag | Bag:
        paths = tuple(found[name][slide] for slide in members if slide in found[name])
        as_set = name in reading.sets
        if not paths:
            return Bag.empty(width, placed=not as_set)
        return StoredBag(
            paths,
            reading.transform,
            reading.drop_augmented,
            steps.get(name),
            as_set,
            reading.max_tokens.get(name),
        )

    return [
        Sample(group, owner[members[0]], {name: bag(name, members) for name in magnifications})
        for group, members in groups.items()
    ]


def _owners(path: Path | None, slides: Sequence[str]) -> dict[str, str]:
    """The patient of every slide."""
    if path is None:
        return {slide: slide for slide in slides}
    rows = read_rows(path)
    header = next(rows).cells
    for column in ("slide", "patient"):
        if header.count(column) != 1:
            raise ValueError(
                f"{path}: must have one column {column!r}, got {header.count(column)} among {', '.join(header)}"
            )
    owner: dict[str, str] = {}
    for line, cells in rows:
        row = dict(zip(header, map(str.strip, cells), strict=True))
        row["slide"] = slide_name(row["slide"])
        if not row["slide"] or not row["patient"]:
            raise ValueError(f"{path}, line {line}: must name a slide and its patient, got an empty cell")
        if row["slide"] in owner:
            raise ValueError(f"{path}, line {line}: must hold every slide once, got {row['slide']!r} again")
        owner[row["slide"]] = row["patient"]
    if unknown := [slide for slide in slides if slide not in owner]:
        raise ValueError(f"{path}: must name the patient of every slide, but lacks {unknown[0]!r}")
    return owner
