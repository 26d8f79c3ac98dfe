"""Tables of results as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..tasks import Task

NAMES = {
    "linear": "linear model (slides)",
    "genes": "SNN (genes)",
    "teacher": "teacher (slides + genes)",
    "student": "student from scratch (slides)",
    "distilled": "distilled student (slides)",
}


def results_table(
    splits: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]], task: Task | type[Task], *, every: bool = False
) -> pd.DataFrame:
    """One row per model: the headline metrics on every test set, mean and standard deviation over splits.

    Args:
        splits: metrics of every split (fold or seed), {model: {test set: {metric: value}}}.
        task: task, or the class of its kind, which names the headline metrics.
        every: whether all measures of quality are shown instead of the headline.

    Returns:
        A table of text: ``0.912`` for one split, ``0.912 ± 0.010`` for several (standard deviation, n - 1). It is empty
        where a model was not tested. The name of a model that some splits lack says how many have it.

    Raises:
        ValueError: there is no split.
    """
    if not splits:
        raise ValueError("splits must hold the metrics of at least one split, got none")
    rows: dict[str, dict[str, str]] = {}
    for model in dict.fromkeys(name for split in splits for name in split):
        own = [split[model] for split in splits if model in split]
        row: dict[str, str] = {}
        for test in own[0]:
            metrics = [tests[test] for tests in own]
            for metric in [m for m in metrics[0] if m not in task.counts] if every else task.headline:
                title = f"{test} {task.headline.get(metric, metric)}"
                row[title] = _mean_and_spread([m[metric] for m in metrics])
        some = f", {len(own)} of {len(splits)} splits" if len(own) < len(splits) else ""
        rows[NAMES[model] + some] = row
    return pd.DataFrame.from_dict(rows, orient="index").reindex(list(rows)).fillna("")


def gains_table(compared: Mapping[str, Mapping[str, Any]], task: Task | type[Task]) -> pd.DataFrame:
    """One row per pair of models: how much better the first one is, with its 95 % interval over patients.

    Args:
        compared: gains by test set, as ``metrics.json`` holds them: ``metric``, ``gains`` and ``headroom_taken``.
        task: task, or the class of its kind, which names the metric.

    Returns:
        A table of text, such as ``+0.022 [+0.005, +0.040]``, and the share of the headroom that distillation takes.
    """
    columns: dict[str, dict[str, str]] = {}
    for test, found in compared.items():
        column = columns.setdefault(f"{test} {task.headline.get(found['metric'], found['metric'])}", {})
        for entry in found["gains"]:
            column[f"{entry['first']} - {entry['second']}"] = _interval(entry)
        if found["headroom_taken"] is not None:
            column["share of the teacher's gain"] = f"{found['headroom_taken']:.0%}"
    return pd.DataFrame(columns).fillna("")


def headroom_line(headroom: Mapping[str, Any], task: Task | type[Task]) -> str:
    """What there is to gain from the teacher, and why distillation was declined if it was, in one line.

    Args:
        headroom: headroom of one split, as ``metrics.json`` holds it; ``distilled`` says whether distillation follows.
        task: task, or the class of its kind, which names the metric.

    Returns:
        The line.
    """
    title = task.headline.get(headroom["metric"], headroom["metric"])
    headroom = {key: np.nan if value is None else value for key, value in headroom.items()}
    line = (
        f"headroom: out-of-fold {title} of {headroom['patients']} training patients: "
        f"teacher {headroom['teacher']:.3f}, linear model on slides {headroom['linear']:.3f}, "
        f"gain {_interval(headroom)}"
    )
    if headroom["distilled"]:
        return line
    if not headroom["low"] > 0:
        return f"{line}; distillation is declined: the interval is not above 0"
    return f"{line}; distillation is declined: a linear model on slides does not gain from the predictions of a teacher"


def _interval(entry: Mapping[str, float | None]) -> str:
    """A difference with its interval; None is NaN."""
    difference, low, high = (np.nan if entry[key] is None else entry[key] for key in ("difference", "low", "high"))
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    numbers = np.array(values, dtype=float)  # None becomes NaN
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1):.3f}"
