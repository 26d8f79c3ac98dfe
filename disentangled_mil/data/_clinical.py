"""The section [clinical] of a description: patients with their slides and labels, from one table or several."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .._checks import check_choice, did_you_mean, first_of
from .._errors import FileError, reading
from .._tables import read_rows
from ..tasks import TaskDefinition
from ._barcodes import tcga_patient
from ._cells import MISSING_VALUES, plain_cell
from ._clinical_rows import ClinicalKeys, ClinicalRows, Place
from ._section import Section
from .table_layout import BARCODES

_ROWS = ("patient", "slide")


class ClinicalTable(NamedTuple):
    """What the clinical tables say.

    Attributes:
        table: one row per patient; text, and None where a column of a task has no value.
        slides: names of the slides of every patient, without the ending of a file; none where no row names one. None
            where the names of files tell their patients.
        places: file and line of every patient of any table, the first ones if there are several.
    """

    table: pd.DataFrame
    slides: dict[str, list[str]] | None
    places: dict[str, Place]


def read_clinical(
    folder: Path, section: Section, tasks: Mapping[str, TaskDefinition], *, without_slides: bool
) -> ClinicalTable:
    """Read the clinical tables, join them by patient, and check the labels of all tasks line by line.

    Args:
        folder: folder of the description.
        section: the table ``[clinical]`` of the description.
        tasks: tasks of the cohort.
        without_slides: flag that allows rows without a slide.

    Returns:
        The table and the slides of every patient. Patients whom one of several tables lacks are left out, and a
        warning gives their number.

    Raises:
        FileNotFoundError: there is no such table.
        FileError: a table or a label is refused; the message names file and line.
    """
    paths = section.files("table", folder)
    patients = section.one_or_more("patient", "patient_id")
    if len(patients) not in (1, len(paths)):
        raise ValueError(
            f"{section.name} patient must name one column, or one for each of the {len(paths)} tables, got {patients!r}"
        )
    columns = dict(zip(paths, patients * len(paths), strict=False))
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{section.name} table must name different files, got {', '.join(map(str, paths))}")
    by_name = section.take("slides_by_name", bool, False)
    if by_name and "slides" in section.content:
        raise ValueError(f"{section.name} slides names a column, so slides_by_name = true must go without it, got both")
    slides, separator = section.take("slides", str, "slides"), section.take("separator", str, ";")
    rows, barcodes = section.take("rows", str, "patient"), section.take("barcodes", str, "whole")
    if not separator:
        raise ValueError(f"{section.name} separator must not be empty")
    check_choice(f"{section.name} rows", rows, _ROWS)
    check_choice(f"{section.name} barcodes", barcodes, BARCODES)
    missing = (
        MISSING_VALUES if "missing" not in section.content else frozenset(map(plain_cell, section.texts("missing")))
    )
    section.known.append("missing")
    section.end()

    keys = ClinicalKeys(None if by_name else slides, separator, rows, barcodes, missing)
    _check_headers(columns, keys.slides, tasks)
    found = ClinicalRows(keys, tasks)
    for path, patient in columns.items():
        with reading(path):
            found.read(path, patient)
    table = _joined(section.name, found)
    for (path, column), numbers in found.thousands.items():
        with reading(path):
            numbers.check(f"{path}, column {column!r}")
    unnamed = [(place, patient) for place, patient in found.unnamed if patient in table.index]
    if unnamed and not without_slides:
        place, patient = unnamed[0]
        raise FileError(
            f"{place}: every patient must have a slide, got none for {patient!r}; {len(unnamed)} rows name none: "
            f'remove them, or name their slides in column {slides!r}; missing = "allow" in [slides] leaves them out',
            place.path,
        )
    named = None if by_name else {patient: found.slides[patient] for patient in table.index}
    return ClinicalTable(table, named, found.places)


def _check_headers(patients: Mapping[Path, str], slides: str | None, tasks: Mapping[str, TaskDefinition]) -> None:
    """Every column that a key names is there: patients in every table, slides in one, labels in one at least."""
    headers = {}
    for path, patient in patients.items():
        headers[path] = [cell.strip() for cell in next(read_rows(path)).cells]
        _check_column([path], headers, patient, "[clinical] patient names the column")
    keys = {}
    if slides is not None:
        keys[slides] = "slides_by_name = true needs none, and takes the names of files; [clinical] slides names it"
    for name, task in tasks.items():
        for key, column in task.columns.items():
            keys.setdefault(column, f"[tasks.{name}] {key} names the column")
    for column, key in keys.items():
        _check_column(list(patients), headers, column, key)
    several = [path for path, header in headers.items() if slides in header]
    if len(several) > 1:
        raise FileError(
            f"{several[1]}: slides must stand in one table, got a column {slides!r} here and in {several[0]}: rename "
            "one of them, or leave this table out",
            several[1],
        )


def _check_column(paths: Sequence[Path], headers: Mapping[Path, list[str]], column: str, key: str) -> None:
    """A column must be in one of the tables, and nowhere twice."""
    counts = {path: headers[path].count(column) for path in paths}
    path = max(counts, key=lambda path: counts[path])
    if counts[path] == 1:
        return
    header = headers[path] if counts[path] else [name for path in paths for name in headers[path]]
    remedy = "" if counts[path] else f"; {key}{did_you_mean(column, header)}"
    tables = path if counts[path] else " and ".join(map(str, paths))
    raise FileError(
        f"{tables}: must have one column {column!r}, got {counts[path]} among {', '.join(header)}{remedy}", path
    )


def _joined(section: str, found: ClinicalRows) -> pd.DataFrame:
    """The patients of all tables, with labels of all tasks; others are left out with their count."""
    for path, patients in found.tables.items():
        if not patients:
            raise FileError(f"{path}: must have at least one patient, got only a header", path)
    records = {
        patient: record
        for patient, record in found.records.items()
        if all(patient in patients for patients in found.tables.values())
    }
    if len(records) < len(found.records):
        lost = {
            path: [patient for patient in found.records if patient not in patients]
            for path, patients in found.tables.items()
        }
        counted = "; ".join(f"{path} lacks {len(names)}: {first_of(names)}" for path, names in lost.items() if names)
        common = set.intersection(*({tcga_patient(p) for p in patients} for patients in found.tables.values())) - {None}
        hint = '; TCGA barcodes agree with barcodes = "patient" in [clinical]' if common - set(records) else ""
        if not records:
            raise ValueError(f"{section} tables must have a patient in common, got none; {counted}{hint}")
        warnings.warn(
            f"{section} left out are {len(found.records) - len(records)} of {len(found.records)} patients whom one of "
            f"the tables lacks; {counted}{hint}",
            stacklevel=4,
        )
    for patient, record in records.items():
        for name, task in found.tasks.items():
            try:
                task.read(record)
            except ValueError as error:
                places = list(dict.fromkeys(found.sources[patient, column] for column in task.columns.values()))
                raise FileError(f"{' and '.join(map(str, places))}: task {name!r}, {error}", places[0].path) from error
    return pd.DataFrame(list(records.values()), index=pd.Index(list(records), name="patient_id"))
