"""Text tables: every row as it stands in the file, with the line it came from."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


class Row(NamedTuple):
    """One row of a table.

    Args:
        line: line of the file; the header is line 1.
        cells: cells of the row; there is one per cell of the header.
    """

    line: int
    cells: list[str]


def read_rows(path: str | Path) -> Iterator[Row]:
    r"""The rows of a comma- or tab-separated table, header first, empty lines skipped.

    Args:
        path: ``.csv``, ``.tsv`` or ``.txt`` (tab-separated) file in UTF-8, also with ``.gz`` behind it.

    Returns:
        An iterator over the rows; the file is read as it advances.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown ending, no readable text (not UTF-8, truncated gzip), no header, or a row with
            another number of cells than the header.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = path.write_text("patient,EGFR\nA,1.5\n")
        >>> [row.cells for row in read_rows(path)]
        [['patient', 'EGFR'], ['A', '1.5']]
    """
    path = Path(path)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in _DELIMITERS:
        raise ValueError(f"{path}: a table must end in .csv, .tsv or .txt (also with .gz), got {path.name!r}")
    width, end = None, 0
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[plain.suffix], strict=True)
            for cells in reader:
                if not cells:
                    continue
                width = len(cells) if width is None else width
                if len(cells) != width:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: a row must have {width} cells like the header, "
                        f"got {len(cells)}"
                    )
                end = reader.line_num
                yield Row(end, cells)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {end + 1}: must be a table whose quotes end where a cell does: {error}"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a readable UTF-8 text table: {error}") from error
    if width is None:
        raise ValueError(f"{path}: a table must have a header, got an empty file")
