"""The figures: time and memory over the number of tokens, of one layer and of whole models."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disentangled_mil._files import replacing

from .results import Record

_COLORS = {"reference": "black", "streaming": "tab:blue", "triton": "tab:orange"}
_PANELS = (("seconds", "time (s)", 1.0), ("peak_bytes", "peak memory above inputs (MB)", 1e-6))


def draw(records: Sequence[Record], path: Path) -> None:
    """Time and memory of a layer, a line per candidate; the dense ones end where they do not fit."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (key, label, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in dict.fromkeys(name for record in records for name in record["candidates"]):
            _line(axes, records, name, key, unit)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(which="major", linewidth=0.4)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"one deformable layer, {', '.join(sorted({record['device'] for record in records}))}", fontsize=10)
    _save(figure, path)


def draw_growth(records: Sequence[Record], path: Path) -> None:
    """Time and memory of whole models beside growth in proportion to the tokens."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (key, label, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in dict.fromkeys(name for record in records for name in record["candidates"]):
            if points := _points(records, name, key, unit):
                sizes, values = zip(*points, strict=True)
                (line,) = axes.plot(sizes, values, "o-", label=name, markersize=4)
                ends = sizes[0], sizes[-1]
                axes.plot(
                    ends, [values[0] * size / sizes[0] for size in ends], ":", color=line.get_color(), linewidth=1
                )
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(which="major", linewidth=0.4)
    figure.axes[0].legend(frameon=False, fontsize=8)
    title = f"one slide, {', '.join(sorted({record['device'] for record in records}))}; dotted: in proportion to tokens"
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure, with letters as text; the same results give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _points(records: Sequence[Record], name: str, key: str, unit: float) -> list[tuple[int, float]]:
    """What was measured of a candidate, by size."""
    measured = [(record["size"], record["candidates"].get(name, {}).get(key)) for record in records]
    return [(size, unit * (median(v) if isinstance(v, list) else v)) for size, v in measured if v]


def _line(axes: Axes, records: Sequence[Record], name: str, key: str, unit: float) -> None:
    if points := _points(records, name, key, unit):
        implementation, _, bias = name.partition(", ")
        style = "o--" if bias == "table" else "o-"
        axes.plot(*zip(*points, strict=True), style, color=_COLORS[implementation], label=name, markersize=4)
