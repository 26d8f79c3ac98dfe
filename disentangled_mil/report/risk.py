"""The parts of a report for tables with times: Kaplan-Meier curves of risk groups, calibration, and wrong orders."""

import json
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.exceptions import ConvergenceError, ConvergenceWarning
from lifelines.statistics import logrank_test
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._colors import BLUE, VERMILION
from .blocks import Figures, Picture, Section, Table, Text, drawing, interval, number, vector
from .run_files import RunFiles
from .tables import NAMES

_SIZES = 4
_MOST_ROWS = 30
_CHECKPOINTS = ("student", "distilled", "teacher", "genes")
_GROUPS = (
    "Kaplan-Meier curves show the share of patients without the event over time, for the half with the higher "
    "predicted risk and the half with the lower one. Bands are 95 % intervals, and ticks are censored patients. The "
    "halves are split at the median risk of the test patients of each fold, because predictions for training patients "
    "are not stored; outcomes play no part in the split. Curves that lie apart mean that the risk tells patients "
    "apart. The hazard ratio (HR) compares the high-risk half with the other: above 1, it has the event sooner. The "
    "p-value of the log-rank test joins the patients of all folds."
)
_CALIBRATION = (
    f"Patients are put into {_SIZES} groups of equal size by their predicted probability to pass the horizon without "
    "the event. A dot compares the mean prediction of a group with the Kaplan-Meier estimate at the horizon, and its "
    "line is the 95 % interval of the estimate. A group without an event before the horizon has no interval. Dots on "
    "the diagonal are calibrated. Below it, the model predicts too few events. The horizon is an edge of the "
    "intervals, which are fitted on the training patients of each fold."
)
_ERRORS = (
    "Two patients of a fold are a pair if one is known to have the event first. Their order is wrong if the other one "
    "has the higher risk. The table lists patients by the number of their wrong pairs: first those with an early event "
    "at a low risk, or a long time at a high one."
)


class _Curve(NamedTuple):
    """A Kaplan-Meier estimate at the times at which it changes, with its 95 % interval."""

    times: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def risk_sections(run: RunFiles) -> list[Section]:
    """The sections, or none where the predictions have no risk, time and event."""
    if not {"risk", "time", "event"} <= set(run.predictions.columns):
        return []
    return [
        Section("survival", "Risk groups", [Text(_GROUPS), *(_groups(run, test) for test in run.tests)]),
        Section("calibration", "Calibration", [Text(_CALIBRATION), *(_calibration(run, test) for test in run.tests)]),
        Section(
            "errors",
            "Whose order was wrong",
            [Text(_ERRORS), *chain.from_iterable(_errors(run, test) for test in run.tests)],
        ),
    ]


def _observations(table: pd.DataFrame) -> pd.DataFrame:
    """Risk, time and event of every patient; ``high`` says whether the risk is above the median of the fold."""
    numbers = table.assign(event=table["event"] == "True", **{k: table[k].astype(float) for k in ("risk", "time")})
    return numbers.assign(high=numbers["risk"] > numbers.groupby("fold")["risk"].transform("median"))


def _groups(run: RunFiles, test: str) -> Figures:
    """Kaplan-Meier curves of two risk groups, a panel per model."""
    unit = run.run["task"].get("columns", {}).get("time", "time")
    pictures = [
        _group_curves(_observations(table), run.name_of(model, test), unit) for model, table in run.tables(test).items()
    ]
    return Figures(f"{run.about(test)}{max(map(len, run.tables(test).values()))} patients.", pictures)


def _group_curves(patients: pd.DataFrame, name: str, unit: str) -> Picture:
    result = _hazard_ratio(patients)
    with drawing(height=4.4) as (figure, axes):
        counts = []
        for high, color, stroke in ((False, BLUE, "-"), (True, VERMILION, "--")):
            group = patients[patients["high"] == high]
            counts.append(
                f"{'high' if high else 'low'} risk: {len(group)} patients, {int(group['event'].sum())} events"
            )
            if len(group):
                _draw_curve(axes, group, color, stroke, counts[-1])
        axes.set(ylabel="share without the event", ylim=(0, 1.02), xlim=(0, None))
        axes.set_xlabel(f"{unit}, and patients at risk: low above, high below")
        last = float(patients["time"].max())
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(0, last) if 0 <= tick <= last]
        axes.set_xticks(ticks, [_at_risk(patients, tick) for tick in ticks])
        figure.legend(loc="outside lower left", handlelength=3)
        axes.set_title(result.replace("; ", "\n"), loc="left", fontsize=9)
        return vector(figure, name, f"Kaplan-Meier curves of {name}: {'; '.join(counts)}; {result}")


def _at_risk(patients: pd.DataFrame, time: float) -> str:
    """A time with the number of patients of both groups that are observed at it."""
    counts = patients.loc[patients["time"] >= time, "high"]
    return f"{time:g}\n{(~counts).sum()}\n{counts.sum()}"


def _draw_curve(axes: Axes, group: pd.DataFrame, color: str, stroke: str, label: str) -> None:
    curve = _kaplan_meier(group["time"], group["event"])
    axes.step(curve.times, curve.values, where="post", color=color, linestyle=stroke, label=label)
    axes.fill_between(curve.times, curve.low, curve.high, step="post", color=color, alpha=0.15, linewidth=0)
    censored = group.loc[~group["event"], "time"].to_numpy()
    at = curve.values[np.searchsorted(curve.times, censored, side="right") - 1]
    axes.plot(censored, at, "|", color=color, markersize=5, markeredgewidth=0.7)


def _kaplan_meier(times: Sequence[float] | pd.Series, events: Sequence[bool] | pd.Series) -> _Curve:
    fitted = KaplanMeierFitter().fit(times, events)
    curve, ends = fitted.survival_function_.iloc[:, 0], fitted.confidence_interval_.to_numpy().T
    low, high = (np.nan_to_num(end, nan=value) for end, value in zip(ends, (0.0, 1.0), strict=True))
    low[0] = high[0] = 1.0  # Nobody has the event at the start.
    return _Curve(curve.index.to_numpy(), curve.to_numpy(), low, high)


def _hazard_ratio(patients: pd.DataFrame) -> str:
    """Hazard ratio of the high-risk half, and the p-value of the log-rank test."""
    high, events = patients["high"], patients["event"]
    if not (events[high].any() and events[~high].any()):
        return "no hazard ratio: a half has no event"
    p = logrank_test(patients["time"][high], patients["time"][~high], events[high], events[~high]).p_value
    frame = pd.DataFrame({"high": high.astype(float), "time": patients["time"], "event": events})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            fitted = CoxPHFitter().fit(frame, "time", "event").summary.loc["high"]
    except (ConvergenceError, ConvergenceWarning):
        ratio = "not estimable"
    else:
        value, low, high = (float(fitted[f"exp(coef){end}"]) for end in ("", " lower 95%", " upper 95%"))
        ratio = interval(value, low, high, ".2f")
    return f"HR {ratio}; log-rank {'p < 0.001' if p < 0.001 else f'p = {number(float(p))}'}"


def _calibration(run: RunFiles, test: str) -> Text | Figures:
    """Predicted against observed survival at the middle edge of the intervals, a panel per model."""
    edges = [edges_of(folder) for folder in run.folders]
    lacking = [str(folder) for folder, found in zip(run.folders, edges, strict=True) if not found]
    tables = {model: table for model, table in run.tables(test).items() if f"hazard_{len(edges[0])}" in table.columns}
    if lacking or not tables:
        reason = (
            f"no checkpoint in {lacking[0]} holds the intervals" if lacking else "the intervals have no middle edge"
        )
        return Text(f"{run.about(test)}There is no calibration, because {reason}.", note=True)
    middle = (len(edges[0]) - 1) // 2
    horizons = [of_fold[middle] for of_fold in edges]
    pictures = [
        _calibration_of(table, horizons, middle + 1, run.name_of(model, test)) for model, table in tables.items()
    ]
    unit = run.run["task"].get("columns", {}).get("time", "time")
    listed = ", ".join(f"{horizon:g}" for horizon in horizons)
    return Figures(f"{run.about(test)}The horizon of each fold is {listed} ({unit}).", pictures)


def edges_of(folder: Path) -> list[float]:
    """The edges of the intervals of a split, from one of its checkpoints; none if there is no checkpoint."""
    for name in _CHECKPOINTS:
        path = folder / f"{name}.json"
        if path.is_file():
            edges = json.loads(path.read_text(encoding="utf-8")).get("task", {}).get("edges", [])
            return [float(edge) for edge in edges]
    return []


def _calibration_of(table: pd.DataFrame, horizons: Sequence[float], intervals: int, name: str) -> Picture:
    hazards = table[[f"hazard_{k}" for k in range(intervals)]].astype(float).to_numpy()
    predicted = np.prod(1 - hazards, axis=1)
    # In units of the horizon, folds have one horizon: 1.
    horizon = np.array([horizons[int(fold)] for fold in table["fold"]])
    times, events = table["time"].astype(float).to_numpy() / horizon, (table["event"] == "True").to_numpy()
    with drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        for rows in np.array_split(np.argsort(predicted, kind="stable"), min(_SIZES, len(table))):
            curve = _kaplan_meier(times[rows], events[rows])
            at = np.searchsorted(curve.times, 1.0, side="right") - 1
            mean = float(predicted[rows].mean())
            axes.vlines(mean, curve.low[at], curve.high[at], color=BLUE, linewidth=1)
            axes.plot(mean, curve.values[at], "o", color=BLUE, clip_on=False)
        axes.set(xlabel="predicted share without the event", ylabel="observed share without the event")
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
        return vector(figure, name, f"predicted against observed survival of {name} at the horizon")


def _errors(run: RunFiles, test: str) -> list[Text | Table]:
    """Patients of the model of choice, by the share of their pairs in the wrong order."""
    model = run.chosen(test)
    table = _observations(run.tables(test)[model])
    table = pd.concat([_wrong_pairs(fold) for _, fold in table.groupby("fold", sort=False)])
    table = table.sort_values(["wrong", "pairs"], ascending=False, kind="stable")
    wrong = table[table["wrong"] > 0]
    if wrong.empty:
        return [Text(f"{run.about(test)}No pair was in the wrong order.")]
    rows = [
        [
            row["patient"],
            f"{row['time']:g}",
            "observed" if row["event"] else "censored",
            f"{row['rank']:.0%}",
            f"{row['wrong']:.0f} of {row['pairs']:.0f}",
            row["fold"],
        ]
        for row in wrong.head(_MOST_ROWS).to_dict("records")
    ]
    caption = (
        f"{run.about(test)}The {len(rows)} largest errors of the {NAMES.get(model, model)}. The rank of the risk is "
        "100 % for the highest risk of the fold."
    )
    return [Table(caption, ("patient", "time", "event", "rank of the risk", "wrong pairs", "fold"), rows)]


def _wrong_pairs(fold: pd.DataFrame) -> pd.DataFrame:
    """The number of comparable pairs of every patient of a fold, and of those in the wrong order."""
    time, event, risk = (fold[name].to_numpy() for name in ("time", "event", "risk"))
    first = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))  # row before column
    wrong = first & (risk[:, None] < risk)
    both = (pairs.sum(0) + pairs.sum(1) for pairs in (wrong, first))
    return fold.assign(**dict(zip(("wrong", "pairs"), both, strict=True)), rank=fold["risk"].rank(pct=True))
