"""One figure per experiment, drawn from its summary; marks differ in form, so that they can be read without color."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..plot import save
from .experiment import Case, Experiment
from .summary import HEADLINES, Gain, Summary

FIGURES = Path(__file__).parents[2] / "docs" / "figures" / "experiments"
_STYLES = (
    ("black", "o", "-"),
    ("#0072b2", "s", "--"),
    ("#d55e00", "^", "-."),
    ("#009e73", "D", ":"),
    ("#cc79a7", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#e69f00", "P", (0, (1, 2))),
    ("black", "x", (0, (6, 2))),
    ("#0072b2", "+", (0, (3, 3))),
    ("#d55e00", "<", (0, (2, 1))),
    ("#009e73", ">", (0, (4, 1, 1, 1))),
)
_WIDE = 3  # panels in a row


def draw(experiment: Experiment, summary: Summary, folder: Path = FIGURES) -> Path | None:
    """Draw the figure of an experiment; return its file, or None where nothing can be drawn yet."""
    figure = DRAWINGS[experiment.figure](experiment, summary)
    if figure is None:
        return None
    path = folder / f"{experiment.name}.svg"
    save(figure, path)
    return path


def differences(experiment: Experiment, summary: Summary) -> Figure | None:
    """Differences from the reference with their intervals, a panel per case and test set."""
    wanted = [g for g in summary.gains if g.over == experiment.reference]
    panels = list(dict.fromkeys((g.cohort, g.task, g.test) for g in wanted))
    if not panels:
        return None
    order = [v.name for v in experiment.variants if any(g.variant == v.name for g in wanted)]
    figure, axes = _grid(len(panels), 0.9 + 0.26 * len(order))
    for number, ((cohort, task, test), panel) in enumerate(zip(panels, axes, strict=True)):
        gains = {g.variant: g for g in wanted if (g.cohort, g.task, g.test) == (cohort, task, test)}
        for place, name in enumerate(order):
            if name in gains:
                _interval(panel, gains[name], place)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(order)), order if number % _WIDE == 0 else [""] * len(order))
        panel.set_ylim(len(order) - 0.5, -0.5)
        metric = HEADLINES[next(iter(gains.values())).metric]
        several = sum(place[:2] == (cohort, task) for place in panels) > 1
        panel.set_title(f"{cohort}, {task}{f', {test}' if several else ''}", fontsize=9)
        panel.set_xlabel(f"{metric}, difference from {experiment.reference}", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", linewidth=0.3)
    return figure


def _interval(panel: Axes, gain: Gain, place: int) -> None:
    """A difference and its interval; the mark is filled where the interval leaves out 0."""
    clear = gain.low > 0 or gain.high < 0
    panel.plot((gain.low, gain.high), (place, place), color="black", linewidth=1.2)
    panel.plot(gain.difference, place, "o", color="black", markerfacecolor="black" if clear else "white", markersize=5)


def strengths(experiment: Experiment, summary: Summary) -> Figure | None:
    """A metric over the strength of the shift, a line per variant."""
    return _lines(
        experiment, summary, "strength of the scanner's shift",
        lambda variant, test: (variant, float(test.removeprefix("shift "))) if test.startswith("shift ") else None,
    )  # fmt: skip


def shares(experiment: Experiment, summary: Summary) -> Figure | None:
    """A metric over the share of genes, a line per way to choose them."""

    def place(variant: str, test: str) -> tuple[str, float] | None:
        share, percent, rule = variant.removeprefix("genes, ").replace(" %", "%").partition("%")
        several = {"variance": "most variable", "random": "random"}
        kept = test in ("test", "external") and percent
        return (several.get(rule.strip(), rule.strip()), float(share)) if kept else None

    return _lines(experiment, summary, "genes of every set (%)", place)


def _lines(
    experiment: Experiment, summary: Summary, label: str, place: Callable[[str, str], tuple[str, float] | None]
) -> Figure | None:
    """A panel per case: the headline metric over a number, a line per name."""
    cases = [case for case in experiment.cases if summary.of(case)]
    if not cases:
        return None
    figure, axes = _grid(len(cases), 3.2, share=False)
    styles: dict[str, tuple[Any, str, Any]] = {}  # a name looks alike in all panels
    for case, panel in zip(cases, axes, strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        metric = next(name for name in HEADLINES if any(name in row.metrics for row in summary.of(case)))
        for row in summary.of(case):
            values = [value for value in row.metrics.get(metric, ()) if value is not None]
            if values and (found := place(row.variant, row.test)):
                points.setdefault(found[0], []).append((found[1], fmean(values)))
        for name, line in points.items():
            color, marker, style = styles.setdefault(name, _STYLES[len(styles) % len(_STYLES)])
            panel.plot(*zip(*sorted(line), strict=True), color=color, marker=marker, linestyle=style, markersize=4)
        panel.set(xlabel=label, ylabel=HEADLINES[metric])
        panel.set_title(f"{case.cohort}, {case.task}", fontsize=9)
        panel.grid(linewidth=0.3)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=style, label=name, markersize=4)
        for name, (color, marker, style) in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def maps(experiment: Experiment, summary: Summary) -> Figure | None:
    """The truth of one slide beside what each variant looks at, a row per case."""
    rows: dict[Case, dict[str, Any]] = {}
    for stored in summary.maps:
        case = Case(stored["cohort"], stored["task"])
        for view, picture in stored["views"].items():
            model = stored["variant"].removeprefix("looks, ")
            rows.setdefault(case, {"truth": picture} if view == "truth" else {})
            if view != "truth":
                rows[case][f"{model}: {view}"] = picture
    if not rows:
        return None
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.7 * columns, 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    gray = mpl.colormaps["gray_r"].copy()
    gray.set_bad("#cfe3f2")  # no tissue
    for (case, views), panels in zip(rows.items(), grid, strict=True):
        for panel in panels:
            panel.set_axis_off()
        for (name, picture), panel in zip(views.items(), panels, strict=False):
            values = np.array([[np.nan if v is None else v for v in line] for line in picture], dtype=float)
            panel.imshow(values, cmap=_two_tones() if _binary(values) else gray, interpolation="nearest")
            panel.set_title(name.replace(": ", "\n"), fontsize=7)
        panels[0].text(-0.08, 0.5, case.cohort, rotation=90, va="center", transform=panels[0].transAxes, fontsize=8)
    return figure


def _two_tones() -> ListedColormap:
    tones = ListedColormap(["#d9d9d9", "black"])
    tones.set_bad("#cfe3f2")
    return tones


def _binary(values: Any) -> bool:
    return set(np.unique(values[~np.isnan(values)])) <= {0.0, 1.0}


def _grid(count: int, height: float, *, share: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels, three in a row."""
    columns = min(count, _WIDE)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(4.5, 3.2 * columns + (1.4 if share else 0)), height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, list(panels[:count])


DRAWINGS: dict[str, Callable[[Experiment, Summary], Figure | None]] = {
    "differences": differences,
    "strengths": strengths,
    "shares": shares,
    "maps": maps,
}
