"""New slides for a saved model: read as training read its own, and compared with them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .._checks import check_choice, check_names
from .._tables import read_rows
from ..bags import Bag
from ..data.cohort import MISSING, TRANSFORMS, Sample, StoredBag
from ..data.slides import SUFFIXES, SlideSource, difference, slide_files, slide_name
from ..tasks import Task, task_from_state


class Reading(NamedTuple):
    """How training read its bags.

    Attributes:
        magnifications: magnifications of the model.
        width: number of features per patch.
        options: options of the cohort, as the checkpoint notes them.
    """

    magnifications: tuple[str, ...]
    width: int
    options: Mapping[str, Any]


def reading_of(checkpoint: Path, description: Mapping[str, Any], magnifications: Sequence[str]) -> Reading:
    """How training read its bags, as a checkpoint notes it.

    Args:
        checkpoint: checkpoint, for errors.
        description: description of the model.
        magnifications: magnifications of the model.

    Returns:
        The reading.

    Raises:
        ValueError: the checkpoint lacks a note, or a note is not as training writes it.
    """
    for key in ("cohort", "task"):
        if key not in description:
            raise ValueError(f"{checkpoint}: must have the key {key!r}, as training writes it, got {list(description)}")
    _check_options(f"{checkpoint}: cohort", description["cohort"], magnifications)
    return Reading(tuple(magnifications), description["arguments"]["features"], description["cohort"])


def task_of(checkpoint: Path, description: Mapping[str, Any], kinds: Mapping[str, type[Task]]) -> Task:
    """The task of a checkpoint; an error names the file."""
    try:
        return task_from_state(description["task"], kinds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def _check_options(name: str, reading: Any, magnifications: Sequence[str]) -> None:
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


def checked(sample: Sample, reading: Reading, *, allow_other_encoder: bool) -> Sample:
    """Compare a sample's metadata with training; files without tiles become empty bags, where these are allowed."""
    width, options = reading.width, reading.options
    bags, empty = dict(sample.bags), []
    for name, bag in sample.bags.items():
        if isinstance(bag, StoredBag):
            source = bag.source()
            if source.tokens:
                known = options["sources"].get(name, {})
                _check_source(name, bag, source, width, known, allow_other_encoder=allow_other_encoder)
            else:
                bags[name] = Bag.empty(width, placed=not bag.as_set)
                empty.append(source.files[0])
    if empty and (options["missing"] == "error" or all(isinstance(bag, Bag) for bag in bags.values())):
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


def new_samples(
    reading: Reading, folders: Mapping[str, Path], patients: Path | None, steps: Mapping[str, float]
) -> list[Sample]:
    """The slides of folders as samples, with the options of training; empty bags where files are missing.

    Args:
        reading: how training read its bags.
        folders: folder of slides, or file of one slide, for every magnification.
        patients: CSV with the columns ``slide`` and ``patient``; without it every slide is a patient.
        steps: side of a grid cell, by magnification; by default from the files.

    Returns:
        One sample per slide or patient.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: slides are missing at a magnification, or slides and patients do not fit.
    """
    magnifications, width, options = reading
    check_names("slides", folders, magnifications)
    if unknown := sorted(set(steps) - set(magnifications)):
        raise ValueError(f"steps must be of the magnifications {', '.join(magnifications)}, got {unknown[0]!r}")
    found = {}
    for name, folder in folders.items():
        found[name] = (
            slide_files(folder) if folder.is_dir() or not folder.exists() else {slide_name(folder.name): folder}
        )
    slides = sorted(set[str]().union(*found.values()))
    if not slides:
        folder_names = ", ".join(map(str, folders.values()))
        raise ValueError(f"{folder_names}: must hold slides ({', '.join(SUFFIXES)}), got none")
    for name, files in found.items():
        if options["missing"] == "error" and (missing := set(slides) - set(files)):
            raise ValueError(
                f"{folders[name]}: must hold every slide, but lacks {min(missing)}.h5 and {len(missing) - 1} others"
            )
    owner = _owners(patients, slides)
    groups: dict[str, list[str]] = {}
    for slide in slides:
        groups.setdefault(owner[slide] if options["bag"] == "patient" else slide, []).append(slide)

    def bag(name: str, members: Sequence[str]) -> StoredBag | Bag:
        paths = tuple(found[name][slide] for slide in members if slide in found[name])
        as_set = name in options["sets"]
        if not paths:
            return Bag.empty(width, placed=not as_set)
        return StoredBag(
            paths,
            options["transform"],
            options["drop_augmented"],
            steps.get(name),
            as_set,
            options["max_tokens"].get(name),
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
