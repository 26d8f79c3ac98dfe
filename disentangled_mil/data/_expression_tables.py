"""Values of expression tables by gene symbol."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

from .._checks import as_number, first_of
from .gene_sets import gene_symbol

SOURCE = "source"  # key of a table's ``attrs``: the section that describes it, which starts errors

Array = np.ndarray[Any, Any]


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
    values = _numbers(table, firsts)
    for place, name in enumerate(names):
        if len(places[name]) > 1 and duplicates != "first":
            if duplicates == "error":
                columns = [str(table.columns[column]) for column in places[name]]
                raise ValueError(
                    f"table must hold every gene once, got {name!r} in the columns {first_of(columns)}; "
                    f"duplicates = 'mean', 'max' or 'first' would allow it"
                )
            several = _numbers(table, places[name])
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


def _numbers(table: pd.DataFrame, columns: Sequence[int]) -> Array:
    """Columns as float64, also where they hold numbers as text."""
    part = table.iloc[:, list(columns)]
    for name, column in part.items() if any(dtype.kind not in "biuf" for dtype in part.dtypes) else ():
        for patient, cell in column.items():
            # A missing value is refused with the values that are not finite.
            if not isfinite(as_number(cell)) and not pd.isna(cell) and not isinstance(cell, float):
                raise ValueError(f"table must hold numbers, got {cell!r} for patient {patient!r}, gene {str(name)!r}")
    values: Array = part.to_numpy(dtype=np.float64, copy=True, na_value=np.nan)
    return values
