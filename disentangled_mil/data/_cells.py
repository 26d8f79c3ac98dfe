"""Cells of a clinical table: the markers that mean "no value", and decimal commas."""

import re
from collections.abc import Collection

# Cells without a value, as `plain_cell` writes them: of pandas, R and spreadsheets, of failed formulas, and of
# registries. The first one is the empty cell.
_MARKERS = """
| na | n.a. | n.a | n/a | nan | -nan | none | null | nil | nd | n.d. | missing | - | -- | --- | . | ? | ?? | unk
| 1.#ind | -1.#ind | 1.#qnan | -1.#qnan | #n/a | #n/a n/a | #na | #value! | #ref! | #div/0! | #name? | #num! | #null!
| #error! | unknown | undetermined | not available | not applicable | not reported | not evaluated | not collected
| not allowed to collect | not determined | not done | not known | not recorded | not specified | not tested
| not assessed | no data | discrepancy | gx
"""
MISSING_VALUES = frozenset(marker.strip() for marker in _MARKERS.split("|"))
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def label(cell: str, missing: Collection[str], decimal_commas: bool) -> str | None:
    """A cell of a task's column; None where it holds a marker for no value."""
    if plain_cell(cell) in missing:
        return None
    return with_point(cell) if decimal_commas else cell


def with_point(cell: str) -> str:
    """A cell, with a decimal comma replaced by a point."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def plain_cell(text: str) -> str:
    """A text without case, brackets and quotes around it, and repeated blanks: ``[Not  Available]``, ``<NA>``."""
    return " ".join(text.strip(" \t[]()<>{}'\"").casefold().replace("_", " ").split())
