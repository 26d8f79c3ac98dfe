"""Numbers of text tables, in the dialects of those who write them."""

import re
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from .._checks import as_number
from .._tables import Row, delimiter_of

_MISSING = frozenset(("", "na", "nan", "n/a", "#n/a", "null"))  # without case
_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")


class TableNumbers:
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
