"""Files of a matrix with names: text tables, Parquet and AnnData."""

import re
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .._checks import as_number
from .._tables import Row, delimiter_of, read_rows
from ._orientation import genes_in_rows
from .table_layout import TableLayout

_PEEK = 200  # rows that tell genes from patients
# Columns beside the values of a table with genes in rows, without case and punctuation.
_BESIDES = """
entrezgeneid entrezid entrez geneid genename genesymbol hugosymbol symbol genetype genebiotype biotype description chr
chrom chromosome start end strand length cytoband accession ensemblid
"""
_ANNOTATIONS = frozenset(_BESIDES.split())
_MISSING = frozenset(("", "na", "nan", "n/a", "#n/a", "null"))  # without case
_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")

Array = np.ndarray[Any, Any]


class Names(NamedTuple):
    """Names that are known before a table is read, which tell its rows from its columns.

    Attributes:
        patients: names of patients.
        genes: symbols of genes.
    """

    patients: Collection[str] = ()
    genes: Collection[str] = ()


class Matrix(NamedTuple):
    """A matrix as a file holds it.

    Attributes:
        rows: names of the rows.
        columns: names of the columns.
        values: values [rows, columns], which may hold NaN.
        places: place of every row in the file, for errors.
        genes_in_rows: place of the genes; None where no name told, and columns were assumed.
        skipped: columns beside the values that were not read.
    """

    rows: list[str]
    columns: list[str]
    values: Array
    places: list[str]
    genes_in_rows: bool | None
    skipped: list[str]


def read_matrix(path: Path, layout: TableLayout, known: Names) -> Matrix:
    """Read a file by its ending: ``.parquet``, ``.h5ad``, or a text table."""
    if path.suffix.lower() == ".parquet":
        return _from_frame(path, _parquet(path), layout, known)
    if path.suffix.lower() == ".h5ad":
        return _from_frame(path, _h5ad(path), layout, known)
    return _from_text(path, layout, known)


def _from_text(path: Path, layout: TableLayout, known: Names) -> Matrix:
    rows = read_rows(path)
    header = next(rows).cells
    peeked = list(islice(rows, _PEEK))
    place = _column_of_names(path, header, layout)
    if len(header) < 2:
        raise ValueError(f"{path}: must have the patient and then at least one gene as columns, got one column")
    if not peeked:
        raise ValueError(f"{path}: must have at least one patient, got only a header")
    if not layout.patient:
        _refuse_row_numbers(path, header, peeked, known)
    names = [row.cells[place].strip() for row in peeked]
    in_rows = _in_rows(layout, header[place], [c for i, c in enumerate(header) if i != place], names, known)
    chosen, skipped = _value_columns(path, header, place, layout, bool(in_rows))
    labels: list[str] = []
    places: list[str] = []
    values = array("d")
    numbers = _Numbers(path, [header[i] for i in chosen], "patient" if in_rows else "gene")
    for row in chain(peeked, rows):
        name = row.cells[place].strip()
        if not name:
            kind = "gene" if in_rows else "patient"
            raise ValueError(f"{path}, line {row.line}: a row must start with its {kind}, got an empty cell")
        labels.append(name)
        places.append(f"line {row.line}")
        values.extend(numbers.of(row, [row.cells[i] for i in chosen]))
    numbers.end(patients=len(labels))
    columns = [header[i].removesuffix(layout.suffix) for i in chosen]
    return Matrix(labels, columns, np.array(values).reshape(len(labels), -1), places, in_rows, skipped)


def _column_of_names(path: Path, header: Sequence[str], layout: TableLayout) -> int:
    if not layout.patient:
        return 0
    if header.count(layout.patient) != 1:
        shown = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
        raise ValueError(
            f"{path}: must have one column {layout.patient!r} (patient), got {header.count(layout.patient)} among "
            f"{shown}"
        )
    return list(header).index(layout.patient)


def _refuse_row_numbers(path: Path, header: Sequence[str], rows: Sequence[Row], known: Names) -> None:
    """Refuse a first column without a name that only counts the rows."""
    cells = [row.cells[0].strip() for row in rows]
    counts = any(cells == [str(number + start) for number in range(len(cells))] for start in (0, 1))
    unnamed = not header[0].strip() or header[0].startswith("Unnamed")
    if unnamed and counts and len(cells) > 1 and not set(cells) <= set(known.patients):
        raise ValueError(
            f"{path}, line {rows[0].line}: the first column must hold patients or genes, got row numbers ({cells[0]}, "
            f"{cells[1]}, ...), which a program wrote as an index: name the column of the patients, e.g. "
            f"patient = {header[1]!r}, or write the table without the index"
        )


def _in_rows(layout: TableLayout, first: str, across: Sequence[str], down: Sequence[str], known: Names) -> bool | None:
    if layout.genes_in != "recognized":
        return layout.genes_in == "rows"
    if layout.patient or layout.suffix:
        return False
    return genes_in_rows(first, across, down, known.patients, known.genes)


def _value_columns(
    path: Path, header: Sequence[str], place: int, layout: TableLayout, in_rows: bool
) -> tuple[list[int], list[str]]:
    """The columns of values, and the names of the others."""
    others = [i for i in range(len(header)) if i != place]
    if in_rows:
        chosen = [i for i in others if re.sub(r"[^a-z]", "", header[i].casefold()) not in _ANNOTATIONS]
    else:
        chosen = [i for i in others if header[i].endswith(layout.suffix)]
    if not chosen:
        wanted = f"a column whose name ends in {layout.suffix!r} (suffix)" if layout.suffix else "a column of values"
        raise ValueError(f"{path}: must have {wanted}, got {', '.join(header[:8])}")
    return chosen, [header[i] for i in others if i not in set(chosen)]


class _Numbers:
    """The numbers of a text table; its decimal mark is the point, or the comma where no comma separates cells.

    A gene that is missing in all of several patients is NaN. Any other cell that is no finite number is an error.
    """

    def __init__(self, path: Path, columns: Sequence[str], kind: str) -> None:
        self.path, self.columns, self.kind = path, columns, kind
        self.may_be_comma = delimiter_of(path) != ","
        self.marks: dict[str, str] = {}
        self.absent: Counter[int] = Counter()  # missing cells of every column
        self.first: dict[int, tuple[int, str]] = {}  # line and text of the first of them

    def of(self, row: Row, cells: list[str]) -> list[float]:
        """The numbers of one row."""
        if self.may_be_comma:
            cells = self._with_points(row, cells)
        try:
            numbers = list(map(float, cells))
            # Python reads 1_5 as 15, which no other program does.
            if all(map(isfinite, numbers)) and not any("_" in cell for cell in cells):
                return numbers
        except ValueError:
            pass
        numbers = list(map(as_number, cells))
        absent = [i for i, cell in enumerate(cells) if cell.strip().casefold() in _MISSING]
        whole_gene = self.kind == "patient" and len(absent) == len(cells) > 1
        for place, number in enumerate(numbers):
            if not isfinite(number) and not whole_gene and (self.kind == "patient" or place not in absent):
                raise self._refusal(row.line, self.columns[place], cells[place])
        if self.kind == "gene":
            self.absent.update(absent)
            for place in absent:
                self.first.setdefault(place, (row.line, cells[place]))
        return numbers

    def end(self, patients: int) -> None:
        """Refuse genes in columns that are missing in some patients."""
        partly = [place for place, count in self.absent.items() if count < patients or patients == 1]
        if partly:
            place = min(partly, key=lambda place: self.first[place][0])
            line, cell = self.first[place]
            raise self._refusal(line, self.columns[place], cell)

    def _refusal(self, line: int, column: str, cell: str) -> ValueError:
        remedy = "fill the cell, or remove its row or column"
        if self.kind == "gene":
            remedy += "; if other columns than genes are there, name the ending of the genes' columns as suffix"
        return ValueError(
            f"{self.path}, line {line}, {self.kind} {column!r}: must be a finite number, got {cell!r}: {remedy}"
        )

    def _with_points(self, row: Row, cells: list[str]) -> list[str]:
        joined = "\t".join(cells)
        for mark in ",.":
            if mark in joined:
                self.marks.setdefault(mark, f"{next(cell for cell in cells if mark in cell)!r} in line {row.line}")
        if len(self.marks) == 2:
            raise ValueError(
                f"{self.path}: numbers must have one decimal mark, the comma or the point, got {self.marks[',']} and "
                f"{self.marks['.']}: write them without separators of thousands"
            )
        if "," not in self.marks:
            return cells
        return [cell.replace(",", ".") if _COMMA.fullmatch(cell.strip()) else cell for cell in cells]


def _parquet(path: Path) -> pd.DataFrame:
    _check_there(path)
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: Parquet needs pyarrow: pip install 'disentangled_mil[parquet]', or write the table as .csv.gz",
            name="pyarrow",
        ) from error
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: must be a complete Parquet file: {error}") from error


def _h5ad(path: Path) -> pd.DataFrame:
    _check_there(path)
    try:
        import anndata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: .h5ad needs anndata: pip install 'disentangled_mil[anndata]', or write the table as .csv.gz",
            name="anndata",
        ) from error
    try:
        frame: pd.DataFrame = anndata.read_h5ad(path).to_df()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: must be a complete .h5ad file: {error}") from error
    return frame


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")


def _from_frame(path: Path, frame: pd.DataFrame, layout: TableLayout, known: Names) -> Matrix:
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    if layout.patient:
        _column_of_names(path, list(frame.columns), layout)
        frame = frame.set_index(layout.patient)
    elif isinstance(frame.index, pd.RangeIndex) and len(frame.columns) and frame.dtypes.iloc[0].kind not in "biuf":
        frame = frame.set_index(frame.columns[0])
    rows = [str(name) for name in frame.index]
    columns = list(frame.columns)
    if not rows or not columns:
        raise ValueError(f"{path}: must have at least one patient and one gene, got {len(rows)} x {len(columns)}")
    first = str(frame.index.name or "")
    in_rows = _in_rows(layout, first, columns, rows[:_PEEK], known)
    chosen, skipped = _value_columns(path, ["", *columns], 0, layout, bool(in_rows))
    part = frame.iloc[:, [i - 1 for i in chosen]]
    for name, dtype in part.dtypes.items():
        if dtype.kind not in "biuf":
            raise ValueError(f"{path}, column {name!r}: must hold numbers, got {dtype}")
    labels = [columns[i - 1].removesuffix(layout.suffix) for i in chosen]
    places = [f"row {number}" for number in range(len(rows))]
    return Matrix(rows, labels, part.to_numpy(dtype=np.float64), places, in_rows, skipped)
