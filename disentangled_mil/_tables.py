"""Text tables: every row as it stands in the file, with the line it came from; and tables that run no formulas."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, cast

from ._checks import as_number
from ._errors import FileError, reading
from ._files import replacing

if TYPE_CHECKING:
    import pandas as pd

# The delimiter of every ending where the header does not tell.
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_COMMENT = "#"
# Text that a spreadsheet runs as a formula, or might; the list is that of OWASP (CSV injection).
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")


class Row(NamedTuple):
    """One row of a table.

    Args:
        line: line of the file; the header is line 1.
        cells: cells of the row; there is one per cell of the header.
    """

    line: int
    cells: list[str]


def read_rows(path: str | Path) -> Iterator[Row]:
    r"""The rows of a table, header first; empty lines, and lines with ``#`` before the header, are skipped.

    The delimiter is the comma, semicolon or tab that the header holds most often outside of quotes.

    Args:
        path: ``.csv``, ``.tsv`` or ``.txt`` file in UTF-8, also with ``.gz`` behind it.

    Returns:
        An iterator over the rows; the file is read as it advances.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: unknown ending, no readable text (not UTF-8, truncated gzip), no header, or a row with
            another number of cells than the header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = path.write_text("patient,EGFR\nA,1.5\n")
        >>> [row.cells for row in read_rows(path)]
        [['patient', 'EGFR'], ['A', '1.5']]
    """
    path = Path(path)
    width, end, read = None, 0, 0
    with reading(path), _opened(path) as file:
        skipped, header = _header(file)
        try:
            lines = _without_nul(path, chain([header] if header else [], file), skipped)
            reader = csv.reader(lines, delimiter=_delimiter(header, _kind(path)), strict=True)
            for cells in reader:
                if not cells:
                    continue
                line = skipped + reader.line_num
                width = len(cells) if width is None else width
                if len(cells) != width:
                    every = read == 1 and all(len(others) in (0, len(cells)) for others in reader)
                    raise ValueError(
                        f"{path}, line {line}: a row must have {width} cells like the header, got {len(cells)}"
                        f"{_width_remedy(len(cells) - width, reader.dialect.delimiter, every)}"
                    )
                end, read = line, read + 1
                yield Row(end, cells)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {max(end, skipped) + 1}: must be a table whose quotes end where a cell does: {error}"
            ) from error
    if width is None:
        raise FileError(f"{path}: a table must have a header, got an empty file", path)


def _without_nul(path: Path, lines: Iterable[str], skipped: int) -> Iterator[str]:
    """Lines of text; one with a NUL is damaged, or of another encoding."""
    for number, line in enumerate(lines, start=skipped + 1):
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: must be text, got a NUL character; save the table as CSV UTF-8")
        yield line


def delimiter_of(path: str | Path) -> str:
    r"""The delimiter of a table, by which :func:`read_rows` reads it.

    Args:
        path: table.

    Returns:
        The character between two cells.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown ending, or no readable text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = path.write_text("patient;EGFR\nA;1,5\n")
        >>> delimiter_of(path)
        ';'
    """
    path = Path(path)
    with reading(path), _opened(path) as file:
        return _delimiter(_header(file)[1], _kind(path))


def write_table(path: str | Path, table: "pd.DataFrame", *, float_format: str | None = None) -> None:
    """Write a table as CSV, whole or not at all; no text in it is run by a spreadsheet, see :func:`guarded`.

    Args:
        path: file to write.
        table: table, whose index is left out.
        float_format: format of the floating-point numbers; by default they come back as they were.

    Raises:
        OSError: the file cannot be written.
    """
    texts = table.rename(columns=_guarded_cell)
    for place, kind in enumerate(table.dtypes):
        if kind.kind not in "biuf":
            texts.isetitem(place, table.iloc[:, place].map(_guarded_cell))
    with replacing(path) as temporary:
        texts.to_csv(temporary, index=False, float_format=float_format)


def guarded(text: str) -> str:
    """A text with a quote before it, if a spreadsheet would run it: it begins with ``=``, ``+``, ``-``, ``@`` ...

    Numbers stay as they are. A text that already has quotes before such a character gets one more, so that
    :func:`unguarded` gives every text back.

    Args:
        text: content of a cell.

    Returns:
        What is written.

    Source:
        OWASP, CSV Injection.

    Example:
        >>> guarded("=1+1"), guarded("-0.5"), guarded("TCGA-02"), guarded("'=1")
        ("'=1+1", '-0.5', 'TCGA-02', "''=1")
    """
    return f"'{text}" if _FORMULA.match(text) and as_number(text) != as_number(text) else text


def unguarded(text: str) -> str:
    """The text from which :func:`guarded` made a cell.

    Args:
        text: cell.

    Returns:
        The text.

    Example:
        >>> unguarded("'=1+1"), unguarded("'s-Hertogenbosch")
        ('=1+1', "'s-Hertogenbosch")
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _guarded_cell(value: object) -> object:
    return guarded(value) if isinstance(value, str) else value


def _width_remedy(more: int, delimiter: str, every: bool) -> str:
    """What to do about a row, or about every row, that has more cells than the header."""
    if more == 1 and every:
        return "; R leaves out the header's first cell: write the table with col.names = NA"
    return f"; a text that holds {delimiter!r} must stand in quotes" if more > 0 and delimiter != "\t" else ""


def _kind(path: Path) -> str:
    """The ending of a table, in small letters and without ``.gz``."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if plain.suffix.lower() not in _DELIMITERS:
        spreadsheet = plain.suffix.lower() in (".xlsx", ".xls", ".ods")
        raise ValueError(
            f"{path}: a table must end in .csv, .tsv or .txt (also with .gz), got {path.name!r}"
            + ("; save the sheet as CSV UTF-8" if spreadsheet else "")
        )
    return plain.suffix.lower()


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a table as text; an error of its encoding or compression names the file."""
    _kind(path)
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield cast(TextIO, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be a readable UTF-8 text table: {error}; save it as CSV UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: must be a readable UTF-8 text table: {error}") from error


def _header(file: TextIO) -> tuple[int, str]:
    """The number of lines before the header, and the header's first line; an empty text if there is none."""
    for skipped, line in enumerate(file):
        if line.strip() and not line.startswith(_COMMENT):
            return skipped, line
    return 0, ""


def _delimiter(header: str, kind: str) -> str:
    """The delimiter that a header holds most often outside of quotes; that of the ending where it holds none."""
    bare = "".join(header.split('"')[::2])
    usual = _DELIMITERS[kind]
    return max((usual, *sorted(set(",;\t") - {usual})), key=bare.count)
