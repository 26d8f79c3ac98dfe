"""The figures of time and memory over the number of tokens: one layer, and whole models on large slides."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from disentangled_mil._files import replacing

from .results import Record

_COLORS = {"reference": "black", "streaming": "tab:blue", "triton": "tab:orange"}
_PANELS = (("seconds", "time (s)", 1.0), ("peak_bytes", "peak memory above inputs (MB)", 1e-6))


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw time and memory of one layer; dense candidates end where they do not fit."""
    figure = _figure(records, "one deformable layer, forward and backward")
    for axes, (key, _, unit) in zip(figure.axes, _PANELS, strict=True):
        for name in _candidates(records):
            implementation, _, bias = name.partition(", ")
            style = "o--" if bias == "table" else "o-"
            if points := _points(records, name, key, unit):
                axes.plot(*zip(*points, strict=True), style, color=_COLORS[implementation], label=name, markersize=4)
    figure.axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_growth(records: Sequence[Record], path: Path) -> None:
    """Draw time and memory of whole models; a dotted line from each first point shows linear growth."""
    figure = _figure(records, "one slide; dotted: linear growth")
    for axes, (key, _, unit) in zip(figure.axes, _PANELS, strict=True):
        for name in _candidates(records):
            if points := _points(records, name, key, unit):
                (line,) = axes.plot(*zip(*points, strict=True), "o-", label=name, markersize=4)
                (first, value), (last, _) = points[0], points[-1]
                axes.plot((first, last), (value, value * last / first), ":", color=line.get_color(), linewidth=1)
    figure.axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def _figure(records: Sequence[Record], title: str) -> Figure:
    """Make the panels of time and memory with logarithmic axes."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes: Axes
    for axes, (_, label, _) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.set_xticks(sorted({record["size"] for record in records}))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(linewidth=0.4)
    figure.suptitle(f"{title}, {', '.join(sorted({record['device'] for record in records}))}", fontsize=10)
    return figure


def _candidates(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record["candidates"]))


def _points(records: Sequence[Record], name: str, key: str, unit: float) -> list[tuple[int, float]]:
    """Give the measurements of a candidate with their sizes."""
    measured = [(record["size"], record["candidates"].get(name, {}).get(key)) for record in records]
    return [(size, unit * (median(v) if isinstance(v, list) else v)) for size, v in measured if v]


def save(figure: Figure, path: Path) -> None:
    """Write a figure; a fixed salt and no date make the file depend on the results only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
