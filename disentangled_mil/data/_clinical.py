"""The clinical table of a cohort: patients with their slides and labels, one row per patient or per slide."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .._checks import as_number, check_choice, did_you_mean
from .._errors import reads_file
from .._tables import delimiter_of, read_rows
from ..tasks import TaskDefinition
from ._barcodes import tcga_patient
from ._section import Section
from ._table_numbers import Thousands
from .slides import slide_name
from .table_layout import BARCODES

# Cells without a value, as `plain_cell` writes them: of pandas, R and spreadsheets, of failed formulas, and of
# registries. The first one is the empty cell.
_MARKERS = """
| na | n.a. | n.a | n/a | nan | -nan | none | null | nil | nd | n.d. | missing | - | -- | --- | . | ? | ?? | unk
| 1.#ind | -1.#ind | 1.#qnan | -1.#qnan | #n/a | #n/a n/a | #na | #value! | #ref! | #div/0! | #name? | #num! | #null!
| #error! | unknown | undetermined | not available | not applicable | not reported | not evaluated | not collected
| not allowed to collect | not determined | not done | not known | not recorded | not specified | not tested
| not assessed | no data | discrepancy | gx
"""
MISSING_VALUES = frozenset(marker.strip() for marker in _MARKERS.split("|"))
_ROWS = ("patient", "slide")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class ClinicalTable(NamedTuple):
    """What the clinical table says.

    Attributes:
        table: one row per patient; text, and None where a column of a task has no value.
        slides: names of the slides of every patient, without the ending of a file; none where no row names one.
        path: file of the table.
        lines: line of every patient, the first one if there are several.
    """

    table: pd.DataFrame
    slides: dict[str, list[str]]
    path: Path
    lines: dict[str, int]


@dataclass(frozen=True)
class _Columns:
    """The keys of the section [clinical]."""

    patient: str
    slides: str
    separator: str
    rows: str
    barcodes: str


def read_clinical(
    folder: Path, section: Section, tasks: Mapping[str, TaskDefinition], *, without_slides: bool
) -> ClinicalTable:
    """Read the clinical table, and check the labels of all tasks line by line.

    Args:
        folder: folder of the description.
        section: the table ``[clinical]`` of the description.
        tasks: tasks of the cohort.
        without_slides: flag that allows rows without a slide.

    Returns:
        The table and the slides of every patient.

    Raises:
        FileNotFoundError: there is no such table.
        FileError: the table or a label is refused; the message names file and line.
    """
    path = section.file("table", folder, section.take("table", str))
    columns = _Columns(
        patient=section.take("patient", str, "patient_id"),
        slides=section.take("slides", str, "slides"),
        separator=section.take("separator", str, ";"),
        rows=section.take("rows", str, "patient"),
        barcodes=section.take("barcodes", str, "whole"),
    )
    if not columns.separator:
        raise ValueError(f"{section.name} separator must not be empty")
    check_choice(f"{section.name} rows", columns.rows, _ROWS)
    check_choice(f"{section.name} barcodes", columns.barcodes, BARCODES)
    missing = (
        MISSING_VALUES if "missing" not in section.content else frozenset(map(plain_cell, section.texts("missing")))
    )
    section.known.append("missing")
    section.end()

    return _read(path, columns, missing, tasks, without_slides)


@reads_file
def _read(
    path: Path,
    columns: _Columns,
    missing: frozenset[str],
    tasks: Mapping[str, TaskDefinition],
    without_slides: bool,
) -> ClinicalTable:
    """The patients of the table, line by line."""
    rows = read_rows(path)
    header = [cell.strip() for cell in next(rows).cells]
    _check_header(path, header, columns, tasks)
    labels = list(dict.fromkeys(column for task in tasks.values() for column in task.columns.values()))
    # A value that a task names is a label, also where it looks like a marker.
    markers = {
        column: missing - {plain_cell(value) for task in tasks.values() for value in task.named_values(column)}
        for column in labels
    }
    decimal_commas = delimiter_of(path) != ","
    kept = [c for c in dict.fromkeys(header) if c in labels or c not in (columns.patient, columns.slides)]
    records: dict[str, dict[str, str | None]] = {}
    slides: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    owners: dict[str, str] = {}
    unnamed: list[str] = []  # rows without a slide
    thousands = {column: Thousands() for column in labels if decimal_commas}
    for line, cells in rows:
        where = f"{path}, line {line}:"
        cell: dict[str, str] = dict(zip(header, map(str.strip, cells), strict=True))
        if not any(cell.values()):
            continue  # a spreadsheet leaves lines of delimiters at the end
        patient = _patient(where, cell[columns.patient], columns, known=records)
        names = [] if plain_cell(cell[columns.slides]) in missing else _slides(where, patient, cell, columns, owners)
        if not names:
            unnamed.append(f"{where} every patient must have a slide, got none for {patient!r}")
        for column, numbers in thousands.items():
            numbers.look(line, [cell[column]])
        record = {c: _label(cell[c], markers[c], decimal_commas) if c in markers else cell[c] for c in kept}
        for name, task in tasks.items():
            try:
                task.read(record)
            except ValueError as error:
                raise ValueError(f"{where} task {name!r}, {error}") from error
        if patient in records:
            _check_same(where, record, records[patient], labels, lines[patient])
        lines.setdefault(patient, line)
        records.setdefault(patient, record)
        slides.setdefault(patient, []).extend(names)
    if not records:
        raise ValueError(f"{path}: must have at least one patient, got only a header")
    for column, numbers in thousands.items():
        numbers.check(f"{path}, column {column!r}")
    if unnamed and not without_slides:
        raise ValueError(
            f"{unnamed[0]}; {len(unnamed)} rows name none: remove them, or name their slides in column "
            f'{columns.slides!r}; missing = "allow" in [slides] leaves them out'
        )
    table = pd.DataFrame(list(records.values()), index=pd.Index(list(records), name="patient_id"))
    return ClinicalTable(table, slides, path, lines)


def _check_header(path: Path, header: Sequence[str], columns: _Columns, tasks: Mapping[str, TaskDefinition]) -> None:
    """Every column that a key names must be there once."""
    keys = {columns.patient: "[clinical] patient", columns.slides: "[clinical] slides"}
    for name, task in tasks.items():
        for key, column in task.columns.items():
            keys.setdefault(column, f"[tasks.{name}] {key}")
    for column, key in keys.items():
        if header.count(column) != 1:
            remedy = f"; {key} names the column{did_you_mean(column, header)}" if column not in header else ""
            raise ValueError(
                f"{path}: must have one column {column!r}, got {header.count(column)} among {', '.join(header)}{remedy}"
            )


def _patient(where: str, name: str, columns: _Columns, *, known: Collection[str]) -> str:
    """The patient of a row."""
    patient = (tcga_patient(name) if columns.barcodes == "patient" else None) or name
    if not patient or (patient in known and columns.rows == "patient"):
        remedy = '; for a table with one row per slide, set [clinical] rows = "slide"' if patient else ""
        raise ValueError(
            f"{where} every patient must have a name and one row, got {patient!r}{' again' if patient else ''}{remedy}"
        )
    return patient


def _slides(where: str, patient: str, row: Mapping[str, str], columns: _Columns, owners: dict[str, str]) -> list[str]:
    """The slides of a row, which are new and stay inside the folders of slides."""
    names = [slide_name(name) for name in row[columns.slides].split(columns.separator) if name.strip()]
    for name in names:
        parts = re.split(r"[/\\]", name)
        if ".." in parts or not parts[0] or ":" in parts[0] or "\0" in name:
            raise ValueError(
                f"{where} slides must lie inside the folders of slides, got {name!r}: name the file alone, without "
                "'..' and without a path from the root"
            )
        if name in owners:
            raise ValueError(f"{where} slides must be different, got {name!r} again (of {owners[name]!r})")
        owners[name] = patient
    return names


def _check_same(
    where: str, record: Mapping[str, str | None], first: Mapping[str, str | None], labels: Sequence[str], line: int
) -> None:
    """Rows of one patient must agree in the columns of tasks."""
    for column in labels:
        if not _equal(record[column], first[column]):
            raise ValueError(
                f"{where} rows of one patient must have the same {column!r}, got {record[column]!r} and "
                f"{first[column]!r} (line {line})"
            )


def _equal(one: str | None, other: str | None) -> bool:
    """Whether two cells say the same, as numbers or as text."""
    return one == other or as_number(one) == as_number(other)


def _label(cell: str, missing: Collection[str], decimal_commas: bool) -> str | None:
    """A cell of a task's column; None where it holds a marker for no value."""
    if plain_cell(cell) in missing:
        return None
    return with_point(cell) if decimal_commas else cell


def with_point(cell: str) -> str:
    """A cell, with a decimal comma replaced by a point."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def plain_cell(text: str) -> str:
    """A text without case, brackets and quotes around it, and repeated blanks: ``[Not  Available]``, ``<NA>``."""
    return " ".join(text.strip(" \t[]()<>{}'\"").casefold().replace("_", " ").split())
