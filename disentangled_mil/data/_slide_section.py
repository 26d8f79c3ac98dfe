"""The section [slides] of a description: a file per slide and magnification, compared before anything is read."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from .._checks import check_choice, check_subspaces, first_of, unknown_key
from ..bags import Bag
from ._clinical import ClinicalTable
from ._samples import Sample, StoredBag
from ._section import Section
from ._slides_by_name import slides_by_name
from .slide_reading import MISSING, TRANSFORMS
from .slides import SlideError, SlideSource, difference, slide_files, slide_name, slide_source


class _Magnification(NamedTuple):
    """Where the slides of one magnification are, and how they are read."""

    section: str
    folder: Path
    files: dict[str, Path]
    sources: dict[str, SlideSource]
    step: float | None
    max_tokens: int | None
    features: str | None
    coords: str | None


def read_samples(folder: Path, section: Section, clinical: ClinicalTable) -> tuple[Sample, ...]:
    """One sample per slide or patient; width, encoder and magnification of all files are compared.

    Args:
        folder: folder of the description.
        section: section [slides].
        clinical: patients, with the names of their slides unless those of the files tell them.

    Returns:
        Samples, whose bags stay in their files. Where the section allows it, slides and patients without any tiles are
        left out, and a warning gives their number.

    Raises:
        FileNotFoundError: a folder or a slide is missing.
        ValueError: a key is wrong, a file is refused, or files disagree.
    """
    unit = section.take("bag", str, "slide")
    transform = section.take("transform", str, "none")
    drop_augmented = section.take("drop_augmented", bool, False)
    missing = section.take("missing", str, "error")
    check_choice(f"{section.name} bag", unit, ("slide", "patient"))
    check_choice(f"{section.name} transform", transform, TRANSFORMS)
    check_choice(f"{section.name} missing", missing, MISSING)
    parts = _magnifications(folder, section)
    slides, rows = clinical.slides, "rows"
    if slides is None:
        names, rows = [name for part in parts.values() for name in part.files], "files"
        patients, allowed = clinical.table.index, missing == "allow"
        slides = slides_by_name(section.name, names, clinical.places, patients, without_slides=allowed)
    _read_sources(parts, slides, as_set=unit == "patient")
    slides = _with_tiles(section.name, slides, list(parts.values()), allow=missing == "allow", rows=rows)
    width = _check_alike(list(parts.values()))

    def bag(part: _Magnification, members: Sequence[str]) -> StoredBag | Bag:
        known = [part.sources[name] for name in members if name in part.sources]
        paths = tuple(path for source in known if source.tokens for path in source.files)
        if paths:
            names = part.features, part.coords
            return StoredBag(paths, transform, drop_augmented, part.step, unit == "patient", part.max_tokens, *names)
        return Bag.empty(width, placed=any(source.placed for source in part.sources.values()))

    def sample(name: str, patient: str, members: Sequence[str]) -> Sample:
        return Sample(name, patient, {magnification: bag(part, members) for magnification, part in parts.items()})

    if unit == "patient":
        # Slides are merged by name, as in a prediction. They share no coordinates, so the bag of a patient is a set.
        return tuple(sample(patient, patient, sorted(members)) for patient, members in slides.items())
    return tuple(sample(name, patient, [name]) for patient, members in slides.items() for name in members)


def _magnifications(folder: Path, section: Section) -> dict[str, _Magnification]:
    """The magnifications, with their files."""
    for key, content in section.content.items():
        if key not in section.known and not isinstance(content, dict):
            words = unknown_key(key, section.known, more=", and a section per magnification")
            raise ValueError(f"{section.name} {words}")
    parts: dict[str, _Magnification] = {}
    for magnification, part in section.sections().items():
        place = folder / part.take("folder", str)
        step, max_tokens = part.optional("step", float), part.optional("max_tokens", int)
        features, coords = part.optional("features", str), part.optional("coords", str)
        part.end()
        if step is not None and not 0 < step < inf:
            raise ValueError(f"{part.name} step must be positive and finite, got {step:g}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"{part.name} max_tokens must be at least 1, got {max_tokens}")
        try:
            files = slide_files(place)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{part.name} folder must be there, got {error}") from error
        parts[magnification] = _Magnification(part.name, place, files, {}, step, max_tokens, features, coords)
    if not parts:
        raise ValueError(f"{section.name} must have a section per magnification, e.g. [slides.20x], got none")
    check_subspaces(parts, f"{section.name} magnifications")
    return parts


def _read_sources(parts: Mapping[str, _Magnification], slides: Mapping[str, list[str]], *, as_set: bool) -> None:
    """Read the metadata of every slide that is there."""
    read: dict[tuple[Path, str | None, str | None], SlideSource] = {}  # Magnifications may share a folder.
    for magnification, part in parts.items():
        for name in (name for own in slides.values() for name in own):
            path = part.files.get(slide_name(name))
            if path is not None:
                asked = path, part.features, part.coords
                if asked not in read:
                    read[asked] = slide_source(path, features=part.features, coords=part.coords, as_set=as_set)
                part.sources[name] = read[asked]
        _check_magnification(magnification, part.section, part.sources.values())


def _with_tiles(
    section: str, slides: Mapping[str, list[str]], parts: Sequence[_Magnification], *, allow: bool, rows: str
) -> dict[str, list[str]]:
    """The slides with tiles at every magnification, or at one of them where ``allow`` is True."""
    names = [name for patient in slides.values() for name in patient]
    full = {name for part in parts for name, source in part.sources.items() if source.tokens}
    if not allow or not full:
        _check_there(parts, names, allow, rows)
    if not names:
        raise ValueError(f"{section} must have at least one slide, got none of a patient in the clinical table")
    kept = {patient: [name for name in own if name in full] for patient, own in slides.items()}
    lost = [name for name in names if name not in full]
    lacking = [patient for patient, own in kept.items() if not own]
    if lost or lacking:
        texts = [
            f"{len(several)} of {count} {what} ({first_of(several)})"
            for several, count, what in (
                (lost, len(names), "slides without a file or without tiles"),
                (lacking, len(slides), "patients without a slide with tiles"),
            )
            if several
        ]
        warnings.warn(f"{section} left out are {' and '.join(texts)}", stacklevel=5)
    return {patient: own for patient, own in kept.items() if own}


def _check_there(parts: Sequence[_Magnification], names: Sequence[str], allowed: bool, rows: str) -> None:
    """Every slide has tiles at every magnification; ``rows`` are what to remove otherwise."""
    others = (
        "reads the other magnifications, and leaves out slides without any" if len(parts) > 1 else "leaves them out"
    )
    remedy = "" if allowed else f'; missing = "allow" in [slides] {others}'
    for name in names:
        for part in parts:
            source = part.sources.get(name)
            if source is not None and source.tokens:
                continue
            absent = sum(other not in part.sources for other in names)
            empty = sum(not other.tokens for other in part.sources.values())
            counted = f"{absent} of {len(names)} slides of the clinical table are missing in {part.folder}"
            if source is None:
                raise FileNotFoundError(
                    f"{part.folder / name}.h5: there is no such file, nor one of another ending; {counted}"
                    f"{f', and {empty} are without patches' if empty else ''}: correct their names or folder, or "
                    f"remove their {rows}{remedy}"
                )
            raise SlideError(
                f"{source.files[0]}: a slide must hold at least one patch, got none; {empty} of {len(names)} slides "
                f"have none in {part.folder}{f', and {absent} are without a file' if absent else ''}: remove their "
                f"{rows}{remedy}",
                source.files[0],
            )


def _check_magnification(name: str, section: str, sources: Iterable[SlideSource]) -> None:
    """Files that state their magnification state that of the section, if its name is one such as 20x."""
    stated = re.fullmatch(r"(\d+(?:\.\d+)?)x", name)
    for source in sources if stated else ():
        reason = difference(source, None, float(stated[1]), None) if stated else None
        if reason is not None:
            raise SlideError(
                f"{source.files[0]}: {reason}, in {section}: are folders swapped, or is the name wrong?",
                source.files[0],
            )


def _check_alike(parts: Sequence[_Magnification]) -> int:
    """The width of all features; encoder and magnification are one within each part."""
    first: SlideSource | None = None
    for part in parts:
        known: SlideSource | None = None
        for source in part.sources.values():
            if not source.tokens:
                continue
            first, known = first or source, known or source
            reason = difference(source, known.encoder, known.magnification, known.mpp)
            if reason is not None:
                raise SlideError(f"{source.files[0]}: {reason} as in {known.files[0]}", source.files[0])
            if source.width != first.width:
                raise SlideError(
                    f"{source.files[0]}: feature width must be {first.width} as in {first.files[0]}, "
                    f"got {source.width}",
                    source.files[0],
                )
    return first.width if first is not None else 0
