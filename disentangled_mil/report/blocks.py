"""What a report consists of, and the style of its figures."""

import warnings
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import isfinite
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._colors import BLACK, BLUE, GREEN, PURPLE, VERMILION

# Color-blind safe, and told apart by their strokes in gray.
STROKES: dict[str, dict[str, Any]] = {
    "linear": {"color": BLACK, "linestyle": ":"},
    "genes": {"color": GREEN, "linestyle": (0, (6, 2))},
    "teacher": {"color": PURPLE, "linestyle": "-."},
    "student": {"color": VERMILION, "linestyle": "--"},
    "distilled": {"color": BLUE, "linestyle": "-"},
}
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "svg.fonttype": "none",  # small files, and letters of every script
    "svg.hashsalt": "disentangled_mil",  # equal figures are equal files
    "text.parse_math": False,  # names may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class Text(NamedTuple):
    """One paragraph; a note says what is missing or needs care."""

    text: str
    note: bool = False


class Table(NamedTuple):
    """A table with a caption; a folded one opens on a click."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


class Picture(NamedTuple):
    """A picture within the page: its title, its description for those who do not see it, and its data."""

    title: str
    alt: str
    data: str
    wide: bool = False


class Figures(NamedTuple):
    """Pictures side by side with one caption."""

    caption: str
    pictures: Sequence[Picture]


class Section(NamedTuple):
    """A part of the report; ``name`` is the target of links to it."""

    name: str
    title: str
    blocks: Sequence[Text | Table | Figures]


@contextmanager
def drawing(width: float = 3.9, height: float = 3.6) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure in the style of the report, which :func:`vector` turns into a picture within the block.

    Args:
        width: width in inches; 3.9 is legible on a phone.
        height: height in inches.

    Yields:
        A new figure and its axes.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has the letters that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def vector(figure: Figure, title: str, alt: str) -> Picture:
    """A drawing as SVG within the page.

    Args:
        figure: figure of :func:`drawing`.
        title: title above the picture.
        alt: description for those who do not see it.

    Returns:
        The picture.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(title, alt, embedded(buffer.getvalue(), "svg+xml"))


def embedded(content: bytes, kind: str) -> str:
    """The content of an image file as an address that holds it."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def number(value: float | None, form: str = ".3f") -> str:
    """A number as text; a dash where it has no value."""
    return format(value, form) if value is not None and isfinite(value) else "–"


def interval(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    """A number with its interval as text."""
    return f"{number(value, form)} [{number(low, form)}, {number(high, form)}]"
