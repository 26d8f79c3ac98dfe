"""Numbers of text tables, in the dialects of those who write them."""

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from .._checks import as_number
from .._tables import Row, delimiter_of

_MISSING = frozenset(("", "na", "nan", "n/a", "#n/a", "null"))  # without case
_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
_SMALL = re.compile(r"[1-9]\d{0,2}")


class Thousands:
    """Whether whole numbers are written with separators of thousands, which would be read as decimal marks.

    Such numbers have three digits behind every mark, and those without a mark are below 1,000.
    """

    def __init__(self) -> None:
        self.possible = True
        self.first = ""  # first cell that may have a separator, with its line
        self.small = False  # whether a whole number below 1,000 is there

    def look(self, line: int, cells: Sequence[str]) -> None:
        """Look at the cells of one row; they are of no interest any more once a number has another form."""
        if not self.possible:
            return
        for cell in map(str.strip, cells):
            if _GROUPED.fullmatch(cell):
                self.first = self.first or f"{cell!r} in line {line}"
            elif _SMALL.fullmatch(cell):
                self.small = True
            elif cell != "0" and cell.casefold() not in _MISSING:
                self.possible = False
                return

    def check(self, where: str) -> None:
        """Refuse the numbers, if all of them have this form."""
        if self.possible and self.first and self.small:
            raise ValueError(
                f"{where}: numbers must have no separators of thousands, got {self.first}, and all numbers with a mark "
                "have three digits behind it: write whole numbers without the mark, or decimals with another number "
                "of digits"
            )


class TableNumbers:
    """The numbers of a text table; its decimal mark is the point, or the comma where no comma separates cells.

    A missing cell is NaN. Any other cell that is no finite number is an error.
    """

    def __init__(self, path: Path, columns: Sequence[str], kind: str) -> None:
        self.path, self.columns, self.kind = path, columns, kind
        self.may_be_comma = delimiter_of(path) != ","
        self.marks: dict[str, str] = {}
        self.thousands = Thousands()

    def of(self, row: Row, cells: list[str]) -> list[float]:
        """The numbers of one row."""
        if self.may_be_comma:
            self.thousands.look(row.line, cells)
            cells = self._with_points(row, cells)
        try:
            numbers = list(map(float, cells))
            # Python reads 1_5 as 15, which no other program does.
            if all(map(isfinite, numbers)) and not any("_" in cell for cell in cells):
                return numbers
        except ValueError:
            pass
        numbers = list(map(as_number, cells))
        for place, number in enumerate(numbers):
            if not isfinite(number) and cells[place].strip().casefold() not in _MISSING:
                raise self._refusal(row.line, self.columns[place], cells[place])
        return numbers

    def end(self) -> None:
        """Refuse separators of thousands, which would be read as decimal marks."""
        self.thousands.check(str(self.path))

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
