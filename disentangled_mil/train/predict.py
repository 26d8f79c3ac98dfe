"""Predictions of a saved student for new slides."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .._checks import check_choice, check_names
from .._files import replacing
from .._tables import read_rows
from ..bags import Bag, collate_bags
from ..data.cohort import MISSING, TRANSFORMS, Sample, StoredBag
from ..data.slides import SUFFIXES, SlideSource, difference, slide_files, slide_name
from ..models import Student
from ..tasks import KINDS, Task, task_from_state
from .checkpoint import load_model
from .predictions import predictions_table
from .threads import Threads, using_threads


def predict_slides(
    checkpoint: Path,
    folders: Mapping[str, Path],
    out: Path,
    *,
    patients: Path | None = None,
    steps: Mapping[str, float] | None = None,
    device: str = "cpu",
    threads: Threads = None,
    allow_other_encoder: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> pd.DataFrame:
    """Predict for every slide, and write one row per patient.

    A slide must be there at all magnifications. If the student was trained with ``missing = "allow"``, one is enough.

    Args:
        checkpoint: checkpoint of a student.
        folders: folder of slides for every magnification of the student.
        out: CSV to write, its folder is made: class probabilities and the predicted class, or hazards and risk.
        patients: CSV with the columns ``slide`` and ``patient``, which names the slides of the folders, and may
            name others; without it every slide is a patient.
        steps: side of a grid cell in the unit of the coordinates, by magnification; by default from the files.
        device: device of the computation.
        threads: number of threads, ``"auto"`` to choose for every sample, or None for PyTorch's setting; see
            :mod:`.threads`.
        allow_other_encoder: whether slides whose files name another encoder than those of training are read all the
            same.
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
    model, description = load_model(checkpoint)
    if not isinstance(model, Student):
        raise ValueError(f"{checkpoint}: must hold a student, got {description['model']!r}, which needs genes")
    for key in ("cohort", "task"):
        if key not in description:
            raise ValueError(f"{checkpoint}: must have the key {key!r}, as training writes it, got {list(description)}")
    _check_reading(f"{checkpoint}: cohort", description["cohort"], model.magnifications)
    if out.is_dir():
        raise IsADirectoryError(f"{out}: must be a file to write, got a folder")
    if patients is not None and out.exists() and patients.exists() and out.samefile(patients):
        raise ValueError(f"{out}: must be another file than the table of patients, which would be overwritten")
    width = description["arguments"]["features"]
    samples = _samples(model.magnifications, folders, patients, steps or {}, description["cohort"], width)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out.parent}: must be a folder that may be written to")
    try:
        task = task_from_state(description["task"], kinds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    # All files are compared before the first prediction, which a late refusal would discard.
    samples = [
        _checked(sample, width, description["cohort"], allow_other_encoder=allow_other_encoder) for sample in samples
    ]
    model.to(device)
    logits = []
    with torch.no_grad():
        for sample in samples:
            bags = {name: collate_bags([bag]).to(device) for name, bag in sample.load().items()}
            with using_threads(threads, [sum(bag.patches.shape[1] for bag in bags.values())], batch_size=1):
                logits.append(model(bags).logits.cpu())
    table = predictions_table(task, torch.cat(logits), [sample.patient for sample in samples])
    with replacing(out) as temporary:
        table.to_csv(temporary, index=False)
    return table


def _check_reading(name: str, reading: Any, magnifications: Sequence[str]) -> None:
    """Check a checkpoint's description of how training read its bags."""
    if not isinstance(reading, dict):
        raise ValueError(f"{name} must be an object, as training writes it, got {reading!r}")
    choices = {
        "bag": ("slide", "patient"),
        "transform": TRANSFORMS,
        "drop_augmented": (False, True),
        "missing": MISSING,
    }
    for key in (*choices, "sets", "max_tokens", "sources"):
        if key not in reading:
            raise ValueError(f"{name} must have the key {key!r}, as training writes it, got {list(reading)}")
    for key, values in choices.items():
        check_choice(f"{name} {key}", reading[key], values)
    sets = reading["sets"]
    if not isinstance(sets, list) or any(magnification not in magnifications for magnification in sets):
        raise ValueError(f"{name} sets must be a list of the magnifications {', '.join(magnifications)}, got {sets!r}")
    for key, kind in (("max_tokens", int), ("sources", dict)):
        values = reading[key]
        if not isinstance(values, dict) or not all(isinstance(value, kind) for value in values.values()):
            what = "a number" if kind is int else "an object"
            raise ValueError(f"{name} {key} must hold {what} per magnification, got {values!r}")


def _checked(sample: Sample, width: int, reading: Mapping[str, Any], *, allow_other_encoder: bool) -> Sample:
    """Compare a sample's metadata with training; files without tiles become empty bags, where these are allowed."""
    bags, empty = dict(sample.bags), []
    for name, bag in sample.bags.items():
        if isinstance(bag, StoredBag):
            source = bag.source()
            if source.tokens:
                known = reading["sources"].get(name, {})
                _check_source(name, bag, source, width, known, allow_other_encoder=allow_other_encoder)
            else:
                bags[name] = Bag.empty(width, placed=not bag.as_set)
                empty.append(source.files[0])
    if empty and (reading["missing"] == "error" or all(isinstance(bag, Bag) for bag in bags.values())):
        raise ValueError(f"{empty[0]}: must hold at least one patch, got none; take the slide out of the folder")
    return replace(sample, bags=bags)


def _check_source(
    name: str,
    bag: StoredBag,
    source: SlideSource,
    width: int,
    known: Mapping[str, Any],
    *,
    allow_other_encoder: bool,
) -> None:
    """Compare what the files of one magnification say with what is known from training."""
    path = source.files[0]
    if source.width != width:
        raise ValueError(f"{path}: must have {width} features per patch, as in training, got {source.width}")
    if not bag.as_set and not source.placed:
        raise ValueError(f"{path}: must have coordinates, as in training, got none")
    encoder = None if allow_other_encoder else known.get("encoder")
    reason = difference(source, encoder, known.get("magnification"), known.get("mpp"))
    if reason is not None:
        remedy = "; --allow-other-encoder predicts all the same" if "encoder" in reason else ""
        raise ValueError(f"{path}: {reason} as in training at {name}{remedy}")


def _samples(
    magnifications: Sequence[str],
    folders: Mapping[str, Path],
    patients: Path | None,
    steps: Mapping[str, float],
    reading: Mapping[str, Any],
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
        if reading["missing"] == "error" and (missing := set(slides) - set(files)):
            raise ValueError(
                f"{folders[name]}: must hold every slide, but lacks {min(missing)}.h5 and {len(missing) - 1} others"
            )
    owner = _owners(patients, slides)
    groups: dict[str, list[str]] = {}
    for slide in slides:
        groups.setdefault(owner[slide] if reading["bag"] == "patient" else slide, []).append(slide)

    def bag(name: str, members: Sequence[str]) -> StoredBag | Bag:
        paths = tuple(found[name][slide] for slide in members if slide in found[name])
        as_set = name in reading["sets"]
        if not paths:
            return Bag.empty(width, placed=not as_set)
        return StoredBag(
            paths,
            reading["transform"],
            reading["drop_augmented"],
            steps.get(name),
            as_set,
            reading["max_tokens"].get(name),
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
