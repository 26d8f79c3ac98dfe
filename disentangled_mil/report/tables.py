"""Tables of results as people read them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
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
_NO_SHARE = "none, as that gain may be 0"
NOT_NAMED = "was not distilled, so no teacher named its prototypes, and their names may be exchanged"
SHORT = {
    "linear": "linear model",
    "genes": "SNN",
    "teacher": "teacher",
    "student": "student",
    "distilled": "distilled student",
}


def title_of(metric: str, task: Task | type[Task]) -> str:
    """The title of a metric in tables.

    Args:
        metric: name of the metric.
        task: task, or the class of its kind.

    Returns:
        The title; the name itself where the kind has none.

    Example:
        >>> from disentangled_mil.tasks import Classification
        >>> [title_of(metric, Classification) for metric in ("auc", "f1", "sensitivity")]
        ['AUC', 'F1', 'sensitivity']
    """
    return {**task.titles, **task.headline}.get(metric, metric)


def results_table(
    splits: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]],
    task: Task | type[Task],
    test: str,
    *,
    every: bool = False,
    chance: Mapping[str, float] = MappingProxyType({}),
) -> pd.DataFrame:
    """One row per model: the headline metrics on a test set, mean and standard deviation over splits.

    Args:
        splits: metrics of every split (fold or seed), {model: {test set: {metric: value}}}.
        task: task, or the class of its kind, which names the headline metrics.
        test: name of the test set.
        every: flag that shows all measures of quality instead of the headline.
        chance: metrics by chance, for a first row.

    Returns:
        A table of text: ``0.912`` for one split, ``0.912 ± 0.010`` for several (standard deviation, n - 1). The name of
        a model that some splits lack says how many have it.

    Raises:
        ValueError: no model has the test set.
    """
    models = dict.fromkeys(model for split in splits for model, tests in split.items() if test in tests)
    rows: dict[str, dict[str, str]] = {}
    for model in models:
        metrics = [split[model][test] for split in splits if test in split.get(model, {})]
        names = [name for name in metrics[0] if name not in task.counts] if every else list(task.headline)
        some = f", {len(metrics)} of {len(splits)} splits" if len(metrics) < len(splits) else ""
        rows[NAMES[model] + some] = {
            title_of(name, task): _mean_and_spread([m[name] for m in metrics]) for name in names
        }
    if not rows:
        raise ValueError(f"splits must hold the metrics of at least one model on {test!r}, got none")
    table = pd.DataFrame.from_dict(rows, orient="index")
    if not chance:
        return table
    first = pd.DataFrame({title_of(name, task): f"{value:.3f}" for name, value in chance.items()}, index=["chance"])
    return pd.concat([first.reindex(columns=table.columns), table]).fillna("")


def folds_table(
    splits: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]],
    task: Task | type[Task],
    test: str,
    counts: Sequence[Mapping[str, Any]],
) -> pd.DataFrame:
    """One row per fold, named as its folder: its test patients, and the first headline metric of every model.

    Args:
        splits: metrics of every fold, {model: {test set: {metric: value}}}.
        task: task, or the class of its kind.
        test: name of the test set.
        counts: number of ``patients`` and ``labels`` in words of every fold.

    Returns:
        A table of text.
    """
    metric = next(iter(task.headline))
    models = dict.fromkeys(model for split in splits for model, tests in split.items() if test in tests)
    rows = {}
    for number, (split, count) in enumerate(zip(splits, counts, strict=True)):
        values = {model: split.get(model, {}).get(test, {}).get(metric, np.nan) for model in models}
        shown = {SHORT[model]: _mean_and_spread([value]) if model in split else "" for model, value in values.items()}
        rows[f"fold{number}"] = {"patients": str(count["patients"]), "labels": count["labels"], **shown}
    return pd.DataFrame.from_dict(rows, orient="index")


def gains_table(compared: Mapping[str, Mapping[str, Any]], task: Task | type[Task]) -> pd.DataFrame:
    """One row per pair of models: how much better the first one is, with its 95 % interval over patients.

    Args:
        compared: gains by test set, as ``metrics.json`` holds them: ``metric``, ``gains`` and ``headroom_taken``.
        task: task, or the class of its kind, which names the metric.

    Returns:
        A table of text, such as ``+0.022 [+0.005, +0.040]``, and the share of the teacher's gain that distillation
        takes, where the interval of that gain is above 0.
    """
    columns: dict[str, dict[str, str]] = {}
    for test, found in compared.items():
        column = columns.setdefault(f"{test} {title_of(found['metric'], task)}", {})
        for entry in found["gains"]:
            column[f"{SHORT[entry['first']]} minus {SHORT[entry['second']]}"] = _interval(entry)
        if found["headroom_taken"] is not None:
            column["share of the teacher's gain"] = f"{found['headroom_taken']:.0%}" if _is_gain(found) else _NO_SHARE
    return pd.DataFrame(columns).fillna("")


def headroom_table(headroom: Sequence[Mapping[str, Any] | None], task: Task | type[Task]) -> pd.DataFrame:
    """One row per split: what there is to gain from the teacher, and whether distillation followed.

    Args:
        headroom: headroom of every split, as ``metrics.json`` holds it; None where it was not measured.
        task: task, or the class of its kind, which names the metric.

    Returns:
        A table of text.
    """
    rows = {}
    for number, one in enumerate(headroom):
        if one is not None:
            title = title_of(one["metric"], task)
            rows[f"fold{number}" if len(headroom) > 1 else ""] = {
                "training patients": str(one["patients"]),
                f"teacher {title}": _mean_and_spread([one["teacher"]]),
                f"linear model {title}": _mean_and_spread([one["linear"]]),
                "gain": _interval(one),
                "distilled": "yes" if one["distilled"] else "no: interval not above 0",
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def headroom_line(headroom: Mapping[str, Any], task: Task | type[Task]) -> str:
    """What there is to gain from the teacher, and why distillation was declined if it was, in one line.

    Args:
        headroom: headroom of one split, as ``metrics.json`` holds it; ``distilled`` says whether distillation follows.
        task: task, or the class of its kind, which names the metric.

    Returns:
        The line.
    """
    title = title_of(headroom["metric"], task)
    headroom = {key: np.nan if value is None else value for key, value in headroom.items()}
    line = (
        f"headroom: out-of-fold {title} of {headroom['patients']} training patients: "
        f"teacher {headroom['teacher']:.3f}, linear model on slides {headroom['linear']:.3f}, "
        f"gain {_interval(headroom)}"
    )
    if headroom["distilled"]:
        return line
    if np.isnan(headroom["low"]):
        return f"{line}; distillation is declined: the interval is not known"
    return f"{line}; distillation is declined: the interval begins at {headroom['low']:+.3f}, not above 0"


def _is_gain(found: Mapping[str, Any]) -> bool:
    """Whether the teacher is better than the student; a share of a gain that may be 0 means nothing."""
    pairs = {(entry["first"], entry["second"]): entry["low"] for entry in found["gains"]}
    low = pairs.get(("teacher", "student"))
    return low is not None and low > 0


def _interval(entry: Mapping[str, float | None]) -> str:
    """A difference with its interval; None is NaN."""
    difference, low, high = (np.nan if entry[key] is None else entry[key] for key in ("difference", "low", "high"))
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _mean_and_spread(values: Sequence[float | None]) -> str:
    numbers = np.array(values, dtype=float)  # None becomes NaN
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1):.3f}"
