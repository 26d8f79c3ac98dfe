"""The figure of time and memory of one layer over the number of tokens."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disentangled_mil._files import replacing

from .results import Record

_COLORS = {"reference": "black", "streaming": "tab:blue", "triton": "tab:orange"}
_PANELS = (("seconds", "time of forward and backward (s)", 1.0), ("peak_bytes", "peak memory above inputs (MB)", 1e-6))


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw time and memory over tokens on logarithmic axes; dense candidates end where they do not fit."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (key, label, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in dict.fromkeys(name for record in records for name in record["candidates"]):
            _line(axes, records, name, key, unit)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(which="major", linewidth=0.4)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"one deformable layer, {', '.join(sorted({record['device'] for record in records}))}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed salt and no date make the file depend on the results only.
    with mpl.rc_context({"svg.hashsalt": "benchmarks"}), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _line(axes: Axes, records: Sequence[Record], name: str, key: str, unit: float) -> None:
    measured = [(record["size"], record["candidates"].get(name, {}).get(key)) for record in records]
    points = [(size, unit * (median(v) if isinstance(v, list) else v)) for size, v in measured if v]
    if points:
        implementation, _, bias = name.partition(", ")
        style = "o--" if bias == "table" else "o-"
        axes.plot(*zip(*points, strict=True), style, color=_COLORS[implementation], label=name, markersize=4)
