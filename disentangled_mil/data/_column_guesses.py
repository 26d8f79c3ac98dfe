"""Columns of a clinical table by their likely purpose, guessed from names and values."""

import re
from collections.abc import Collection
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from .._checks import as_number
from .._errors import reads_file
from .._tables import delimiter_of, read_rows
from ._barcodes import tcga_patient
from ._cells import MISSING_VALUES, plain_cell, with_point
from .slides import slide_name

_PEEK = 2000
_MOST_CLASSES = 12
_PATIENT = re.compile(r"(bcr_)?(patient|case|subject|participant)(_?(id|barcode|name|submitter_id))?", re.IGNORECASE)
_SLIDE = re.compile(r"(slides?|wsi|images?|file_?names?)(_?(id|name|path)s?)?", re.IGNORECASE)
_TIME = re.compile(r"time|days|months|years|survival|follow", re.IGNORECASE)
_EVENT = re.compile(r"event|status|dead|death|deceased|vital|relapse|recur|progress|cens", re.IGNORECASE)
_CENSORSHIP = re.compile("cens", re.IGNORECASE)
SEPARATORS = ";|"  # of slides in a cell
_GENES_SUFFIX = "_rnaseq"
_OBSERVED = re.compile(r"(1[:.])?\s*(dead|died|deceased|expired|death|dod|true|yes|event)", re.IGNORECASE)
_CENSORED = re.compile(r"(0[:.])?\s*(alive|living|lives|survived|censored|ned|false|no|no event|none)", re.IGNORECASE)


class Columns(NamedTuple):
    """Guesses about one table.

    Attributes:
        header: names of the columns.
        patient: column of the patients, or None.
        slides: column of the slides, or None.
        matched: number of cells of the column of slides that are slides of the folder.
        repeated: flag, True if a patient has several rows.
        times: columns that may hold times.
        events: columns that may hold events, with the values that occur.
        labels: columns that may hold classes, with the values that occur.
        numeric: share of the columns that hold numbers.
        suffix: ending of columns of genes, or an empty text.
        separator: character between the slides of a cell.
        patients: patients, whose TCGA barcodes are cut.
        barcodes: flag, True if barcodes of patients were cut.
    """

    header: list[str]
    patient: str | None
    slides: str | None
    matched: int
    repeated: bool
    times: list[str]
    events: dict[str, list[str]]
    labels: dict[str, list[str]]
    numeric: float
    suffix: str
    separator: str = SEPARATORS[0]
    patients: frozenset[str] = frozenset()
    barcodes: bool = False

    @property
    def has_task(self) -> bool:
        """Whether the table holds classes, or times and events, and not numbers alone as a table of expression."""
        return bool(self.times and self.events) or (bool(self.labels) and self.numeric <= 0.9)

    @property
    def censorship(self) -> str | None:
        """An event column whose name says that 1 is censored."""
        return next((name for name in self.events if _CENSORSHIP.search(name)), None)


@reads_file
def guess_columns(path: Path, slides: Collection[str]) -> Columns:
    """Guess the purpose of the columns of a table from its first 2,000 rows.

    Args:
        path: text table.
        slides: names of the slides that are there.

    Returns:
        The guesses.

    Raises:
        ValueError: the table is malformed.
    """
    rows = read_rows(path)
    header = [name.strip() for name in next(rows).cells]
    cells = [row.cells for row in islice(rows, _PEEK)]
    values = {name: [row[i].strip() for row in cells] for i, name in enumerate(header)}
    read = with_point if delimiter_of(path) != "," else str
    known = set(slides)
    matches = {name: sum(bool(known & _names(cell)) for cell in column) for name, column in values.items()}
    slide = max(matches, key=lambda name: matches[name], default=None)
    if slide is None or not matches[slide]:
        slide = next((name for name in header if _SLIDE.fullmatch(name)), None)
    patient = next((name for name in header if _PATIENT.fullmatch(name)), None) or next(
        (name for name in header if name != slide and any(map(tcga_patient, values[name]))), None
    )
    suffix = _GENES_SUFFIX if sum(name.endswith(_GENES_SUFFIX) for name in header) > 1 else ""
    others = {
        name: sorted({cell for cell in column if plain_cell(cell) not in MISSING_VALUES})
        for name, column in values.items()
        if name and name not in (patient, slide)
    }
    numeric = [
        name for name, found in others.items() if found and all(isfinite(as_number(read(cell))) for cell in found)
    ]
    events = {name: found for name, found in others.items() if _EVENT.search(name) and len(found) == 2}
    times = [name for name in numeric if _TIME.search(name) and name not in events and len(others[name]) > 2]
    labels = {
        name: found
        for name, found in others.items()
        if 2 <= len(found) <= _MOST_CLASSES and 2 * len(found) <= len(cells) and name not in events
    }
    share = len(numeric) / max(1, len(others))
    named = values[patient] if patient is not None else []
    cut = [tcga_patient(name) or name for name in named]
    several = len(set(cut)) < len(named)
    patients = frozenset(name for name in cut if plain_cell(name) not in MISSING_VALUES)
    matched = matches.get(slide or "", 0)
    separator = max(SEPARATORS, key=lambda mark: sum(cell.count(mark) for cell in values.get(slide or "", ())))
    return Columns(
        header,
        patient,
        slide,
        matched,
        several,
        times,
        events,
        labels,
        share,
        suffix,
        separator,
        patients,
        cut != named,
    )


def event_keys(columns: Columns, event: str) -> dict[str, str]:
    """The keys of a survival task that name an event column and its values.

    Args:
        columns: guesses about the table.
        event: name of the column.

    Returns:
        The keys with their values; ``observed`` and ``censored`` only where the words leave no doubt.
    """
    if _CENSORSHIP.search(event):
        return {"censorship": event}
    values = columns.events[event]
    if all(as_number(value.partition(":")[0]) in (0.0, 1.0) for value in values):
        return {"event": event}
    observed = [value for value in values if _OBSERVED.fullmatch(value)]
    censored = [value for value in values if _CENSORED.fullmatch(value)]
    if len(observed) == len(censored) == 1:
        return {"event": event, "observed": observed[0], "censored": censored[0]}
    return {"event": event}


def _names(cell: str) -> set[str]:
    """The names of slides in a cell, whatever stands between them."""
    return {slide_name(name) for name in re.split(f"[{SEPARATORS}]", cell) if name.strip()}
