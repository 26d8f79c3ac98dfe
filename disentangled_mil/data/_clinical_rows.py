"""The rows of clinical tables: one record per patient, whichever tables and rows its cells stand in."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .._checks import as_number
from .._tables import delimiter_of, read_rows
from ..tasks import TaskDefinition
from ._barcodes import tcga_patient
from ._cells import label, plain_cell
from ._table_numbers import Thousands
from .slides import slide_name


class Place(NamedTuple):
    """A line of a table."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass(frozen=True)
class ClinicalKeys:
    """The keys of the section [clinical] that hold for all of its tables.

    Args:
        slides: column of the slides; None where the names of files tell the patient.
        separator: text between the slides of a cell.
        rows: unit of a row, ``"patient"`` or ``"slide"``.
        barcodes: ``"whole"``, or ``"patient"`` to cut TCGA barcodes.
        missing: cells without a value, as :func:`plain_cell` writes them.
    """

    slides: str | None
    separator: str
    rows: str
    barcodes: str
    missing: frozenset[str]


@dataclass
class ClinicalRows:
    """What was read of the patients so far, from one table after the other.

    Args:
        keys: keys of the section.
        tasks: tasks of the cohort.
        records: cells of every patient by column. Rows agree in the columns of tasks; in others the first row counts.
        places: first row of every patient.
        sources: row of every cell of a task, by patient and column.
        tables: patients of every table.
        slides: names of the slides of every patient.
        unnamed: rows without a slide, with their patients.
        thousands: numbers that may have separators of thousands, by table and column of a task.
    """

    keys: ClinicalKeys
    tasks: Mapping[str, TaskDefinition]
    records: dict[str, dict[str, str | None]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    sources: dict[tuple[str, str], Place] = field(default_factory=dict)
    tables: dict[Path, set[str]] = field(default_factory=dict)
    slides: dict[str, list[str]] = field(default_factory=dict)
    unnamed: list[tuple[Place, str]] = field(default_factory=list)
    thousands: dict[tuple[Path, str], Thousands] = field(default_factory=dict)

    def read(self, path: Path, patient_column: str) -> None:
        """Read a table line by line.

        Args:
            path: table, whose header was checked.
            patient_column: column of the patients.

        Raises:
            ValueError: a row is refused; the message names file and line.
        """
        rows = read_rows(path)
        header = [cell.strip() for cell in next(rows).cells]
        labels = [c for c in dict.fromkeys(header) if any(c in task.columns.values() for task in self.tasks.values())]
        # A value that a task names is a label, also where it looks like a marker.
        markers = {
            column: self.keys.missing
            - {plain_cell(value) for task in self.tasks.values() for value in task.named_values(column)}
            for column in labels
        }
        decimal_commas = delimiter_of(path) != ","
        kept = [c for c in dict.fromkeys(header) if c in labels or c not in (patient_column, self.keys.slides)]
        known = self.tables.setdefault(path, set())
        owners: dict[str, str] = {}
        thousands = {column: Thousands() for column in labels if decimal_commas}
        self.thousands |= {(path, column): numbers for column, numbers in thousands.items()}
        for line, cells in rows:
            place = Place(path, line)
            cell: dict[str, str] = dict(zip(header, map(str.strip, cells), strict=True))
            if not any(cell.values()):
                continue  # a spreadsheet leaves lines of delimiters at the end
            patient = self._patient(place, cell[patient_column], known)
            known.add(patient)
            if self.keys.slides in cell:
                names = self._slides(place, patient, cell[self.keys.slides], owners)
                self.slides.setdefault(patient, []).extend(names)
                if not names:
                    self.unnamed.append((place, patient))
            for column, numbers in thousands.items():
                if plain_cell(cell[column]) not in markers[column]:
                    numbers.look(line, [cell[column]])
            record = {c: label(cell[c], markers[c], decimal_commas) if c in markers else cell[c] for c in kept}
            self._add(place, patient, record, labels)

    def _add(self, place: Place, patient: str, record: Mapping[str, str | None], labels: Collection[str]) -> None:
        """Add a row to the record of its patient, with which it must agree in the columns of tasks."""
        first = self.records.setdefault(patient, {})
        for column in labels:
            if column in first and not _equal(record[column], first[column]):
                raise ValueError(
                    f"{place}: rows of one patient must have the same {column!r}, got {record[column]!r} and "
                    f"{first[column]!r} ({self.sources[patient, column]})"
                )
            self.sources.setdefault((patient, column), place)
        first.update({column: cell for column, cell in record.items() if column not in first})
        self.places.setdefault(patient, place)

    def _patient(self, place: Place, name: str, known: Collection[str]) -> str:
        """The patient of a row; ``known`` are those of the table's rows before it."""
        patient = (tcga_patient(name) if self.keys.barcodes == "patient" else None) or name
        if not patient or (patient in known and self.keys.rows == "patient"):
            remedy = '; for a table with one row per slide, set [clinical] rows = "slide"' if patient else ""
            raise ValueError(
                f"{place}: every patient must have a name and one row, got {patient!r}{' again' if patient else ''}"
                f"{remedy}"
            )
        return patient

    def _slides(self, place: Place, patient: str, cell: str, owners: dict[str, str]) -> list[str]:
        """The slides of a row, which are new and stay inside the folders of slides."""
        if plain_cell(cell) in self.keys.missing:
            return []
        names = [slide_name(name) for name in cell.split(self.keys.separator) if name.strip()]
        for name in names:
            parts = re.split(r"[/\\]", name)
            if ".." in parts or not parts[0] or ":" in parts[0] or "\0" in name:
                raise ValueError(
                    f"{place}: slides must lie inside the folders of slides, got {name!r}: name the file alone, "
                    "without '..' and without a path from the root"
                )
            if name in owners:
                raise ValueError(f"{place}: slides must be different, got {name!r} again (of {owners[name]!r})")
            owners[name] = patient
        return names


def _equal(one: str | None, other: str | None) -> bool:
    """Whether two cells say the same, as numbers or as text."""
    return one == other or as_number(one) == as_number(other)
