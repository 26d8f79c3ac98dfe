"""Expression tables as files: patients x genes, whatever their layout."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .._checks import first_of
from .._errors import reads_file
from .._tables import read_rows
from ._barcodes import one_aliquot_each
from ._expression_tables import Array
from ._gene_names import genes_of_date
from ._matrix_files import Names, read_matrix
from .gene_sets import gene_symbol
from .table_layout import TableLayout


class ExpressionFile(NamedTuple):
    """An expression table as it was read.

    Attributes:
        table: patients x genes, float64.
        notes: sentences that say what was recognized.
    """

    table: pd.DataFrame
    notes: list[str]


def read_expression(path: str | Path, layout: TableLayout | None = None) -> pd.DataFrame:
    r"""Read an expression table: patients and genes, in rows and columns or the other way round.

    A column that has no name and only counts the rows is refused. Decimal commas are read where semicolons or tabs
    separate the cells. Rows of one patient that are equal count once, for tables with one row per slide. Genes that are
    missing (``NA``) in a patient, genes without a name, and patients without any value are left out, and a warning
    names them. Nothing is imputed. A second header, as Firehose writes it, is left out.

    Args:
        path: ``.csv``, ``.tsv`` or ``.txt`` file in UTF-8, also with ``.gz`` behind it; ``.parquet`` (extra
            ``parquet``); or ``.h5ad`` (extra ``anndata``), whose ``X`` is read.
        layout: layout of the table; by default the first column holds names, and all others are values.

    Returns:
        A float64 table, patients x genes, in the order and with the names of the file. A gene may occur
        twice.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the extra that reads the file is not installed.
        FileError: the file is no readable table, has no gene or no patient, a patient is there twice with different
            values or has no name, a cell is no finite number, or numbers have separators of thousands. The message
            names file, line and gene.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil.data.expression import read_expression
        >>> path = Path(tempfile.mkdtemp()) / "expression.csv"
        >>> _ = path.write_text("patient_id,EGFR,CD2\nA,1.5,0\nB,0.25,3\n")
        >>> read_expression(path).loc["B"].tolist()
        [0.25, 3.0]
    """
    return read_expression_file(Path(path), layout or TableLayout(), Names()).table


@reads_file
def read_expression_file(path: Path, layout: TableLayout, known: Names) -> ExpressionFile:
    """Read an expression table, with notes about what was recognized."""
    matrix = read_matrix(path, layout, known)
    values, patients, genes = matrix.values, matrix.rows, matrix.columns
    places = matrix.places
    if matrix.genes_in_rows:
        values, patients, genes = values.T, matrix.columns, matrix.rows
        places = [f"column {name!r}" for name in patients]
        values, genes = _with_names(path, values, genes, matrix.places)
    patients = [name.strip() for name in patients]
    notes = [_orientation_note(layout, matrix.genes_in_rows, len(patients), len(genes)), *matrix.notes]
    kept = list(range(len(patients)))
    if layout.barcodes == "patient":
        aliquots = one_aliquot_each(patients)
        kept, names = list(aliquots.values()), list(aliquots)
        if len(kept) < len(patients):
            notes.append(
                f"{len(patients) - len(kept)} of {len(patients)} aliquots are left out: normal tissue, and further "
                "aliquots of a patient"
            )
        patients = names
        if not patients:
            raise ValueError(f"{path}: must hold a tumor sample, got normal tissue only")
    else:
        kept = _without_repeats(path, patients, values, places)
        patients = [patients[row] for row in kept]
    if layout.symbols:
        genes, found = _mapped(genes, _symbols(Path(layout.symbols)))
        notes.append(f"{found} of {len(genes)} genes have a symbol in {layout.symbols}")
        if not found:
            raise ValueError(
                f"{layout.symbols}: must hold symbols of the genes of {path}, got none of {first_of(genes)}"
            )
    dates = {gene: genes_of_date(gene) for gene in genes if gene[:1].isdigit() or "-" in gene}
    if dates := {gene: possible for gene, possible in dates.items() if possible}:
        shown = "; ".join(f"{date!r} was one of {', '.join(possible)}" for date, possible in list(dates.items())[:5])
        warnings.warn(
            f"{path}: {len(dates)} genes have names that a spreadsheet turned into dates: {shown}; rename them, or "
            "take the table from its source again",
            stacklevel=4,
        )
    table = pd.DataFrame(values[kept], index=pd.Index(patients, name="patient_id"), columns=genes)
    return ExpressionFile(_with_values(path, table), notes)


def _orientation_note(layout: TableLayout, in_rows: bool | None, patients: int, genes: int) -> str:
    how = "as stated" if layout.genes_in != "recognized" else "recognized"
    if in_rows is None:
        how = "assumed, because no name tells; genes_in = 'rows' says otherwise"
    return f"{patients} patients x {genes} genes, genes in {'rows' if in_rows else 'columns'} ({how})"


def _with_names(path: Path, values: Array, genes: list[str], places: Sequence[str]) -> tuple[Array, list[str]]:
    """The genes that have a name; cBioPortal leaves symbols empty."""
    unnamed = [place for place, gene in zip(places, genes, strict=True) if not gene]
    if unnamed:
        warnings.warn(
            f"{path}: {len(unnamed)} of {len(genes)} genes have no name and are left out: {first_of(unnamed)}",
            stacklevel=5,
        )
    named = [place for place, gene in enumerate(genes) if gene]
    return values[:, named], [genes[place] for place in named]


def _with_values(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The patients with values, and the genes that have one in each of them."""
    infinite = np.argwhere(np.isinf(table.to_numpy()))
    if len(infinite):
        row, column = infinite[0]
        raise ValueError(
            f"{path}, patient {table.index[row]!r}, gene {table.columns[column]!r}: must be a finite number, got "
            f"{table.iat[row, column]}: correct the value, or remove its patient or gene"
        )
    absent = table.isna().to_numpy()
    if not absent.any():
        return table
    if absent.all():
        genes = list(map(str, table.columns))
        raise ValueError(
            f"{path}: must have at least one gene with values, got {len(genes)} without: {first_of(genes)}"
        )
    there = ~absent.all(axis=1)
    absent = absent[there]
    everywhere = absent.all(axis=0)
    partly = absent.any(axis=0) & ~everywhere
    most = table.index[there][absent[:, partly].sum(axis=1).argmax()]
    if (everywhere | partly).all():
        raise ValueError(
            f"{path}: must have at least one gene with a value in every patient, got none; most are missing in "
            f"{most!r}: fill the cells, or remove patients"
        )
    for lost, names, what in (
        (~there, table.index, "patients have no value"),
        (everywhere, table.columns, "genes have no value in any patient"),
        (partly, table.columns, f"genes have no value in some patients, most in {most!r},"),
    ):
        if lost.any():
            named = first_of(list(map(str, names[lost])))
            warnings.warn(f"{path}: {lost.sum()} of {len(names)} {what} and are left out: {named}", stacklevel=5)
    return table.loc[there, ~(everywhere | partly)]


def _without_repeats(path: Path, patients: Sequence[str], values: Array, places: Sequence[str]) -> list[int]:
    """The first row of every patient; other rows of a patient must be equal."""
    firsts: dict[str, int] = {}
    for row, patient in enumerate(patients):
        first = firsts.setdefault(patient, row)
        if not np.array_equal(values[row], values[first], equal_nan=True):
            raise ValueError(
                f"{path}, {places[row]}: patients must be different, got {patient!r} again ({places[first]}) with "
                "other values: keep one row of each patient"
            )
    return list(firsts.values())


def _symbols(path: Path) -> dict[str, str]:
    """The symbol of every identifier, from the first two columns of a table."""
    rows = read_rows(path)
    if len(next(rows).cells) < 2:
        raise ValueError(f"{path}: must have two columns, an identifier and a symbol, got one")
    return {gene_symbol(row.cells[0]): row.cells[1].strip() for row in rows if row.cells[1].strip()}


def _mapped(genes: Sequence[str], symbols: dict[str, str]) -> tuple[list[str], int]:
    """The symbol of every gene, or its own name, and the number of symbols."""
    found = [symbols.get(gene_symbol(gene)) for gene in genes]
    return [symbol or gene for symbol, gene in zip(found, genes, strict=True)], sum(s is not None for s in found)
