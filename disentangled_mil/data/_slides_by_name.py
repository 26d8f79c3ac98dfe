"""Slides of patients by the names of the files, where no table names slides."""

import unicodedata
import warnings
from collections.abc import Collection, Iterable, Mapping

from .._checks import first_of
from .._errors import FileError
from ._barcodes import tcga_patient
from ._clinical_rows import Place


def slides_by_name(
    section: str, names: Iterable[str], places: Mapping[str, Place], kept: Iterable[str], *, without_slides: bool
) -> dict[str, list[str]]:
    """The slides of every patient, which are those whose names begin with that of the patient.

    Args:
        section: name of the section, which starts a warning.
        names: names of the slides that are there.
        places: file and line of every patient, also of those who are left out, whose files belong to no other.
        kept: patients of the cohort.
        without_slides: flag that allows patients without a slide.

    Returns:
        Names of the slides of every patient of the cohort, sorted. Files of no patient are left out, and a warning
        gives their number.

    Raises:
        FileError: a patient has no slide.
    """
    slides: dict[str, list[str]] = {patient: [] for patient in places}
    known = {unicodedata.normalize("NFC", patient): patient for patient in places}
    others = []
    for name in sorted(set(names)):
        patient = patient_in(name, known)
        if patient is None:
            others.append(name)
        else:
            slides[known[patient]].append(name)
    if others:
        warnings.warn(
            f"{section} left out are {len(others)} files whose names begin with no patient of the clinical table: "
            f"{first_of(others)}",
            stacklevel=4,
        )
    slides = {patient: slides[patient] for patient in kept}
    lacking = [patient for patient, own in slides.items() if not own]
    if lacking and not without_slides:
        there = {tcga_patient(name) for name in others} - {None}
        cut = any(tcga_patient(patient) in there for patient in lacking)
        raise FileError(
            f"{places[lacking[0]]}: every patient must have a slide, got no file whose name begins with "
            f"{lacking[0]!r}; {len(lacking)} of {len(slides)} patients have none: remove their rows, or correct the "
            f'names; missing = "allow" in [slides] leaves them out'
            + ('; names of files are TCGA barcodes: set barcodes = "patient" in [clinical]' if cut else ""),
            places[lacking[0]].path,
        )
    return slides


def patient_in(name: str, patients: Collection[str]) -> str | None:
    """The longest patient's name with which a slide's name begins, at whose end no letter and no digit follows.

    Args:
        name: name of a slide.
        patients: names of patients, a set or a mapping.

    Returns:
        The patient; None if there is none.

    Example:
        >>> patient_in("P1_2.tumor", {"P1", "P1_2", "P1_2.t"}), patient_in("P12", {"P1"})
        ('P1_2', None)
    """
    ends = (end for end in range(len(name), 0, -1) if not name[end : end + 1].isalnum())
    return next((name[:end] for end in ends if name[:end] in patients), None)
