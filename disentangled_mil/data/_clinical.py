"""The clinical table of a cohort: one row per patient with its slides and labels."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .._tables import read_rows
from ..tasks import TaskDefinition
from ._section import Section

# Cells without a value, as `_plain` writes them: of pandas, R and spreadsheets, of failed formulas, and of registries.
# The first one is the empty cell.
_MARKERS = """
| na | n.a. | n.a | n/a | nan | -nan | none | null | nil | nd | n.d. | missing | - | -- | --- | . | ? | ?? | unk
| 1.#ind | -1.#ind | 1.#qnan | -1.#qnan | #n/a | #n/a n/a | #na | #value! | #ref! | #div/0! | #name? | #num! | #null!
| #error! | unknown | undetermined | not available | not applicable | not reported | not evaluated | not collected
| not allowed to collect | not determined | not done | not known | not recorded | not specified | not tested
| not assessed | no data | discrepancy | gx
"""
_MISSING = frozenset(marker.strip() for marker in _MARKERS.split("|"))


class ClinicalTable(NamedTuple):
    """What the clinical table says.

    Attributes:
        table: one row per patient; text, and None where a column of a task has no value.
        slides: names of the slides of every patient.
    """

    table: pd.DataFrame
    slides: dict[str, list[str]]


def read_clinical(folder: Path, section: Section, tasks: Mapping[str, TaskDefinition]) -> ClinicalTable:
    """Read the clinical table, and check the labels of all tasks line by line.

    Args:
        folder: folder of the description.
        section: the table ``[clinical]`` of the description.
        tasks: tasks of the cohort.

    Returns:
        The table and the slides of every patient.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table or a label is refused; the message names file and line.
    """
    path = section.file("table", folder, section.take("table", str))
    patient_column = section.take("patient", str, "patient_id")
    slides_column = section.take("slides", str, "slides")
    separator = section.take("separator", str, ";")
    if not separator:
        raise ValueError(f"{section.name} separator must not be empty")
    missing = _MISSING if "missing" not in section.content else frozenset(map(_plain, section.texts("missing")))
    section.known.append("missing")
    section.end()

    rows = read_rows(path)
    header = next(rows).cells
    labels = list(dict.fromkeys(column for task in tasks.values() for column in task.columns.values()))
    # A value that a task names is a label, also where it looks like a marker.
    markers = {
        column: missing - {_plain(value) for task in tasks.values() for value in task.named_values(column)}
        for column in labels
    }
    for column in [patient_column, slides_column, *labels]:
        if header.count(column) != 1:
            raise ValueError(
                f"{path}: must have one column {column!r}, got {header.count(column)} among {', '.join(header)}"
            )
    kept = [
        column for column in dict.fromkeys(header) if column in labels or column not in (patient_column, slides_column)
    ]
    records: dict[str, dict[str, str | None]] = {}
    slides: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for line, cells in rows:
        where = f"{path}, line {line}:"
        cell: dict[str, str] = dict(zip(header, map(str.strip, cells), strict=True))
        patient = cell[patient_column]
        if not patient or patient in records:
            raise ValueError(
                f"{where} every patient must have a name and one row, got {patient!r}{' again' if patient else ''}"
            )
        slides[patient] = [name.strip() for name in cell[slides_column].split(separator) if name.strip()]
        if not slides[patient]:
            raise ValueError(f"{where} every patient must have a slide, got none for {patient!r}")
        for name in slides[patient]:
            if name in owners:
                raise ValueError(f"{where} slides must be different, got {name!r} again (of {owners[name]!r})")
            owners[name] = patient
        record = {
            column: _label(cell[column], markers[column]) if column in markers else cell[column] for column in kept
        }
        for name, task in tasks.items():
            try:
                task.read(record)
            except ValueError as error:
                raise ValueError(f"{where} task {name!r}, {error}") from error
        records[patient] = record
    if not records:
        raise ValueError(f"{path}: must have at least one patient, got only a header")
    return ClinicalTable(pd.DataFrame(list(records.values()), index=pd.Index(list(records), name="patient_id")), slides)


def _label(cell: str, missing: Collection[str]) -> str | None:
    """A cell of a task's column; None where it holds a marker for no value."""
    return None if _plain(cell) in missing else cell


def _plain(text: str) -> str:
    """A text without case, brackets and quotes around it, and repeated blanks: ``[Not  Available]``, ``<NA>``."""
    return " ".join(text.strip(" \t[]()<>{}'\"").casefold().replace("_", " ").split())
