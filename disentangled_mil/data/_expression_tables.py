"""Expression tables: read from files, and their values by gene symbol."""

from array import array
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._checks import as_number
from .._tables import Row, read_rows
from .gene_sets import gene_symbol

Array = np.ndarray[Any, Any]


def read_expression(path: str | Path) -> pd.DataFrame:
    r"""Read an expression table: one row per patient, the identifier first, one column per gene.

    Args:
        path: ``.csv`` or ``.tsv`` file in UTF-8, also with ``.gz`` behind it.

    Returns:
        A float64 table, patients x genes, in the order and with the names of the file. A gene may occur
        twice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no readable table, has no gene or no patient, a patient is there twice or has no
            name, or a cell is no finite number. The message names file, line and gene.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil.data.expression import read_expression
        >>> path = Path(tempfile.mkdtemp()) / "expression.csv"
        >>> _ = path.write_text("patient_id,EGFR,CD2\nA,1.5,0\nB,0.25,3\n")
        >>> read_expression(path).loc["B"].tolist()
        [0.25, 3.0]
    """
    rows = read_rows(path)
    _, *genes = next(rows).cells
    if not genes:
        raise ValueError(f"{path}: must have the patient and then at least one gene as columns, got one column")
    lines: dict[str, int] = {}
    values = array("d")
    for row in rows:
        patient = row.cells[0].strip()
        if not patient:
            raise ValueError(f"{path}, line {row.line}: a row must start with its patient, got an empty cell")
        if patient in lines:
            raise ValueError(
                f"{path}, line {row.line}: patients must be different, got {patient!r} again (line {lines[patient]})"
            )
        lines[patient] = row.line
        values.extend(_numbers(path, row, genes))
    if not lines:
        raise ValueError(f"{path}: must have at least one patient, got only a header")
    matrix = np.array(values).reshape(len(lines), len(genes))
    return pd.DataFrame(matrix, index=pd.Index(list(lines), name="patient_id"), columns=genes)


def columns_of(table: pd.DataFrame) -> dict[str, list[int]]:
    """The columns of every symbol."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(table.columns):
        places.setdefault(gene_symbol(str(name)), []).append(place)
    return places


def gather(table: pd.DataFrame, names: Sequence[str], places: Mapping[str, list[int]], duplicates: str) -> Array:
    """Values [n, G] of the named genes, float64, several columns of one symbol made one."""
    firsts = [places[name][0] for name in names]
    for name, first in zip(names, firsts, strict=True):
        if (dtype := table.dtypes.iloc[first]).kind in "cmM":
            raise TypeError(f"table must hold numbers, got {dtype} for gene {name!r}")
    values: Array = table.iloc[:, firsts].to_numpy(dtype=np.float64, copy=True)
    for place, name in enumerate(names):
        if len(places[name]) > 1 and duplicates != "first":
            if duplicates == "error":
                columns = [str(table.columns[column]) for column in places[name]]
                raise ValueError(
                    f"table must hold every gene once, got {name!r} in the columns {first_of(columns)}; "
                    f"duplicates = 'mean', 'max' or 'first' would allow it"
                )
            several = table.iloc[:, places[name]].to_numpy(dtype=np.float64)
            values[:, place] = several.mean(axis=1) if duplicates == "mean" else several.max(axis=1)
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"table must hold finite numbers, got {values[row, column]} for patient {table.index[row]!r}, "
            f"gene {names[column]!r}"
        )
    return values


def log1p_of(values: Array, names: Sequence[str], table: pd.DataFrame) -> Array:
    """log(1 + value), for values that can be counts, FPKM or TPM."""
    if (values < 0).any():
        row, column = np.argwhere(values < 0)[0]
        raise ValueError(
            f"log1p needs values >= 0, got {values[row, column]} for patient {table.index[row]!r}, "
            f"gene {names[column]!r}: log-transformed or z-scored tables need log1p=False"
        )
    logs: Array = np.log1p(values)
    return logs


def first_of(names: Sequence[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def _numbers(path: str | Path, row: Row, genes: Sequence[str]) -> list[float]:
    """The values of one patient; the first cell that is no finite number is an error."""
    try:
        numbers = list(map(float, row.cells[1:]))
        # Python reads 1_5 as 15, which no other program does.
        if all(map(isfinite, numbers)) and not any("_" in cell for cell in row.cells[1:]):
            return numbers
    except ValueError:
        pass
    faulty = ((gene, cell) for gene, cell in zip(genes, row.cells[1:], strict=True) if not isfinite(as_number(cell)))
    gene, cell = next(faulty)
    raise ValueError(f"{path}, line {row.line}, gene {gene!r}: must be a finite number, got {cell!r}")
