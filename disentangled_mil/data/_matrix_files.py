"""Files of a matrix with names: text tables, Parquet and AnnData."""

import re
from array import array
from collections.abc import Collection, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .._checks import first_of
from .._tables import Row, read_rows
from ._orientation import genes_in_rows, is_gene_header
from ._table_numbers import TableNumbers
from .gene_sets import gene_symbol
from .table_layout import TableLayout

_PEEK = 200  # rows that tell genes from patients
# Columns beside the values of a table with genes in rows, without case and punctuation.
_BESIDES = """
entrezgeneid entrezid entrez geneid genename genesymbol hugosymbol symbol genetype genebiotype biotype description chr
chrom chromosome start end strand length cytoband accession ensemblid
"""
_ANNOTATIONS = frozenset(_BESIDES.split())
_MOST_SHOWN = 8

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
        rows: names of the rows; a gene without a name is an empty text.
        columns: names of the columns.
        values: values [rows, columns], which may hold NaN.
        places: place of every row in the file, for errors.
        genes_in_rows: place of the genes; None where no name told, and columns were assumed.
        notes: sentences on what was left out, or used beside the values.
    """

    rows: list[str]
    columns: list[str]
    values: Array
    places: list[str]
    genes_in_rows: bool | None
    notes: list[str]


def read_matrix(path: Path, layout: TableLayout, known: Names) -> Matrix:
    """Read a file by its ending: ``.parquet``, ``.h5ad``, or a text table."""
    if path.suffix.lower() == ".parquet":
        return _from_frame(path, _parquet(path), layout, known)
    if path.suffix.lower() == ".h5ad":
        return _from_frame(path, _h5ad(path, layout), layout, known)
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
        _refuse_row_numbers(path, header, peeked, layout, known)
    names = [row.cells[place].strip() for row in peeked]
    in_rows = _in_rows(layout, header[place], [c for i, c in enumerate(header) if i != place], names, known)
    chosen, skipped = _value_columns(path, header, place, layout, bool(in_rows))
    notes: list[str] = []
    if in_rows and _is_header(place, chosen, peeked[0]):
        second = peeked.pop(0)
        notes.append(_second_header(path, second, place, chosen))
        if not peeked:
            raise ValueError(f"{path}: must have at least one gene, got only headers")
    places_beside = {header[i]: i for i in skipped if in_rows}
    beside: dict[str, list[str]] = {column: [] for column in places_beside}
    labels: list[str] = []
    places: list[str] = []
    values = array("d")
    numbers = TableNumbers(path, [header[i] for i in chosen], "patient" if in_rows else "gene")
    for row in chain(peeked, rows):
        name = row.cells[place].strip()
        if not name and not in_rows:
            raise ValueError(f"{path}, line {row.line}: a row must start with its patient, got an empty cell")
        labels.append(name)
        places.append(f"line {row.line}")
        values.extend(numbers.of(row, [row.cells[i] for i in chosen]))
        for column, i in places_beside.items():
            beside[column].append(row.cells[i].strip())
    numbers.end()
    labels = _named_as_known(labels, [header[i] for i in skipped], beside, layout, known, notes)
    columns = [header[i].removesuffix(layout.suffix) for i in chosen]
    return Matrix(labels, columns, np.array(values).reshape(len(labels), -1), places, in_rows, notes)


def _is_header(place: int, chosen: Sequence[int], row: Row) -> bool:
    """Whether a row of a table with genes in rows is a second header, as Firehose writes it."""
    words = all(row.cells[i].strip()[:1].isalpha() for i in chosen)
    return words and is_gene_header(row.cells[place]) and not any(map(str.isdigit, row.cells[place]))


def _second_header(path: Path, row: Row, place: int, chosen: Sequence[int]) -> str:
    """A note about a second header, which must name one kind of values."""
    kinds = list(dict.fromkeys(row.cells[i].strip() for i in chosen))
    if len(kinds) > 1:
        raise ValueError(
            f"{path}, line {row.line}: the columns of values must hold one kind of values, got {first_of(kinds)} in a "
            "second header: keep the columns of one kind"
        )
    return f"line {row.line} is a second header and is left out: {row.cells[place].strip()}, {kinds[0]}"


def _named_as_known(
    labels: list[str],
    skipped: Sequence[str],
    beside: dict[str, list[str]],
    layout: TableLayout,
    known: Names,
    notes: list[str],
) -> list[str]:
    """The names of the genes from the column that holds the most known ones; the first column where none holds more."""

    def found(names: Sequence[str]) -> int:
        return sum(gene_symbol(name) in known.genes for name in names)

    best = max(beside, key=lambda column: found(beside[column]), default=None)
    if best is not None and not layout.symbols and found(beside[best]) > found(labels):
        notes.append(f"genes are named by the column {best!r}, which holds more genes of the sets than the first one")
        labels = [other or label for other, label in zip(beside[best], labels, strict=True)]
        skipped = [name for name in skipped if name != best]
    if skipped:
        notes.append(f"{len(skipped)} other columns are not read: {first_of(skipped)}")
    return labels


def _column_of_names(path: Path, header: Sequence[str], layout: TableLayout) -> int:
    if not layout.patient:
        return 0
    if header.count(layout.patient) != 1:
        raise ValueError(
            f"{path}: must have one column {layout.patient!r} (patient), got {header.count(layout.patient)} among "
            f"{first_of(header, _MOST_SHOWN)}"
        )
    return list(header).index(layout.patient)


def _refuse_row_numbers(
    path: Path, header: Sequence[str], rows: Sequence[Row], layout: TableLayout, known: Names
) -> None:
    """Refuse a first column without a name that only counts the rows."""
    cells = [row.cells[0].strip() for row in rows]
    counts = any(cells == [str(number + start) for number in range(len(cells))] for start in (0, 1))
    unnamed = not header[0].strip() or header[0].startswith("Unnamed")
    if unnamed and counts and len(cells) > 1 and not set(cells) <= set(known.patients):
        second = [row.cells[1].strip() for row in rows]
        of_genes = _in_rows(layout, header[1], header[2:], second, known)
        named = "" if of_genes else f"name the column of the patients, e.g. patient = {header[1]!r}, or "
        raise ValueError(
            f"{path}, line {rows[0].line}: the first column must hold patients or genes, got row numbers ({cells[0]}, "
            f"{cells[1]}, ...), which a program wrote as an index: {named}write the table without the index"
            f"{f', so that the genes ({header[1]!r}) come first' if of_genes else ''}"
        )


def _in_rows(layout: TableLayout, first: str, across: Sequence[str], down: Sequence[str], known: Names) -> bool | None:
    if layout.genes_in != "recognized":
        return layout.genes_in == "rows"
    if layout.patient or layout.suffix:
        return False
    return genes_in_rows(first, across, down, known.patients, known.genes)


def _value_columns(
    path: Path, header: Sequence[str], place: int, layout: TableLayout, in_rows: bool
) -> tuple[list[int], list[int]]:
    """The columns of values, and the others."""
    others = [i for i in range(len(header)) if i != place]
    if in_rows:
        chosen = [i for i in others if re.sub(r"[^a-z]", "", header[i].casefold()) not in _ANNOTATIONS]
    else:
        chosen = [i for i in others if header[i].endswith(layout.suffix)]
    if not chosen:
        wanted = f"a column whose name ends in {layout.suffix!r} (suffix)" if layout.suffix else "a column of values"
        raise ValueError(f"{path}: must have {wanted}, got {', '.join(header[:8])}")
    return chosen, sorted(set(others) - set(chosen))


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


def _h5ad(path: Path, layout: TableLayout) -> pd.DataFrame:
    _check_there(path)
    try:
        import anndata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: .h5ad needs anndata: pip install 'disentangled_mil[anndata]', or write the table as .csv.gz",
            name="anndata",
        ) from error
    try:
        content = anndata.read_h5ad(path)
        frame: pd.DataFrame = content.to_df()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: must be a complete .h5ad file: {error}") from error
    if not layout.patient:
        return frame
    if layout.patient not in content.obs:
        raise ValueError(
            f"{path}: obs must have the column {layout.patient!r} (patient), got "
            f"{first_of(list(map(str, content.obs)), _MOST_SHOWN) or 'none'}; without patient its index is taken"
        )
    return frame.set_index(pd.Index(content.obs[layout.patient], dtype=object, name=layout.patient))


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")


def _from_frame(path: Path, frame: pd.DataFrame, layout: TableLayout, known: Names) -> Matrix:
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    if layout.patient and frame.index.name != layout.patient:
        _column_of_names(path, list(frame.columns), layout)
        frame = frame.set_index(layout.patient)
    elif isinstance(frame.index, pd.RangeIndex) and len(frame.columns) and frame.dtypes.iloc[0].kind not in "biuf":
        frame = frame.set_index(frame.columns[0])
    rows = ["" if pd.isna(name) else str(name).strip() for name in frame.index]
    columns = list(frame.columns)
    if not rows or not columns:
        raise ValueError(f"{path}: must have at least one patient and one gene, got {len(rows)} x {len(columns)}")
    first = str(frame.index.name or "")
    in_rows = _in_rows(layout, first, columns, rows[:_PEEK], known)
    chosen, skipped = _value_columns(path, ["", *columns], 0, layout, bool(in_rows))
    notes: list[str] = []
    beside = {columns[i - 1]: list(frame.iloc[:, i - 1].astype(str)) for i in skipped if in_rows}
    part = frame.iloc[:, [i - 1 for i in chosen]]
    for name, dtype in part.dtypes.items():
        if dtype.kind not in "biuf":
            raise ValueError(f"{path}, column {name!r}: must hold numbers, got {dtype}")
    labels = [columns[i - 1].removesuffix(layout.suffix) for i in chosen]
    places = [f"row {number}" for number in range(len(rows))]
    if "" in rows and not in_rows:
        raise ValueError(f"{path}, {places[rows.index('')]}: a row must start with its patient, got an empty cell")
    rows = _named_as_known(rows, [columns[i - 1] for i in skipped], beside, layout, known, notes)
    return Matrix(rows, labels, part.to_numpy(dtype=np.float64), places, in_rows, notes)
