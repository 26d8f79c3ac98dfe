"""New slides for a saved model: read as training read its own, and compared with them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from .._checks import check_names, first_of
from .._errors import reads_file
from .._tables import read_rows
from ..bags import Bag
from ..data.cohort import Sample, StoredBag
from ..data.slide_reading import SlideReading, TileFacts
from ..data.slides import SUFFIXES, SlideSource, difference, slide_files, slide_name
from ..data.tile_ratios import other_ratio
from .slide_facts import tell_partly_read


def all_checked(
    samples: Sequence[Sample],
    width: int,
    reading: SlideReading,
    *,
    allow_other_encoder: bool,
    allow_other_tiles: bool,
    quiet: bool,
) -> list[Sample]:
    """Compare all files with training before the first prediction; the first error counts the others."""
    checked, errors = [], []
    sides = {name: facts.relative_side for name, facts in reading.tiles.items()}
    ratios = {} if allow_other_tiles else {name: side for name, side in sides.items() if side is not None}
    for sample in tqdm(samples, desc="checking slides", unit="sample", disable=quiet):
        try:
            checked.append(_checked(sample, width, reading, ratios, allow_other_encoder=allow_other_encoder))
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise ValueError(f"{errors[0]} (and {len(errors) - 1} more of {len(samples)} are refused)") from errors[0]
    if errors:
        raise errors[0]
    tell_partly_read(checked)
    return checked


def _checked(
    sample: Sample, width: int, reading: SlideReading, ratios: Mapping[str, float], *, allow_other_encoder: bool
) -> Sample:
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
    if reason := other_ratio(bags, ratios):
        raise ValueError(f"{reason} --allow-other-tiles reads them all the same")
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


def new_samples(
    magnifications: Sequence[str],
    folders: Mapping[str, str | Path],
    patients: str | Path | None,
    steps: Mapping[str, float],
    reading: SlideReading,
    width: int,
) -> list[Sample]:
    """The slides of folders as samples, with the options of training; empty bags where files are missing.

    Args:
        magnifications: magnifications of the model.
        folders: folder of slides, or file of one slide, for every magnification.
        patients: CSV with the columns ``slide`` and ``patient``; without it every slide is a patient.
        steps: side of a grid cell, by magnification; by default from the files.
        reading: options of reading slides.
        width: number of features per patch.

    Returns:
        One sample per slide or patient.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: slides are missing at a magnification, slides and patients do not fit, or a model of patients got no
            table of patients.
    """
    if patients is None and reading.unit == "patient":
        raise ValueError(
            "the model learned from all slides of a patient in one bag, so it needs --patients, a CSV with the columns "
            "slide and patient"
        )
    check_names("slides", folders, magnifications)
    if unknown := sorted(set(steps) - set(magnifications)):
        raise ValueError(f"steps must be of the magnifications {', '.join(magnifications)}, got {unknown[0]!r}")
    found = {}
    for name, given in folders.items():
        folder = Path(given)
        found[name] = {slide_name(folder.name): folder} if _is_slide(folder) else slide_files(folder)
    slides = sorted(set[str]().union(*found.values()))
    if not slides:
        folder_names = ", ".join(map(str, folders.values()))
        raise ValueError(f"{folder_names}: must hold slides ({', '.join(SUFFIXES)}), got none")
    for name, files in found.items():
        if reading.missing == "error" and (missing := sorted(set(slides) - set(files))):
            raise ValueError(f"{folders[name]}: must hold every slide, but lacks {first_of(missing)}")
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
            reading.features.get(name),
            reading.coords.get(name),
        )

    return [
        Sample(group, owner[members[0]], {name: bag(name, members) for name in magnifications})
        for group, members in groups.items()
    ]


def files_of(samples: Sequence[Sample]) -> list[Path]:
    """The files of all slides; the ``.zarr`` of a slide is a folder.

    Args:
        samples: samples, whose bags may be in files.

    Returns:
        The files.
    """
    stored = [bag for each in samples for bag in each.bags.values() if isinstance(bag, StoredBag)]
    return [Path(path) for bag in stored for path in bag.paths]


def _is_slide(path: Path) -> bool:
    """Whether a path is one slide and no folder of slides; the ``.zarr`` of a slide is a folder too."""
    return path.is_file() or (path.is_dir() and path.suffix.lower() in SUFFIXES)


def _owners(path: str | Path | None, slides: Sequence[str]) -> dict[str, str]:
    """The patient of every slide."""
    return {slide: slide for slide in slides} if path is None else _read_owners(path, slides)


@reads_file
def _read_owners(path: str | Path, slides: Sequence[str]) -> dict[str, str]:
    """The patient of every slide in a table."""
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
