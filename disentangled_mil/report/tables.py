"""Tables of results as people read them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .._checks import check_choice

NAMES = {
    "genes": "SNN (genes)",
    "teacher": "teacher (slides + genes)",
    "student": "student from scratch (slides)",
    "distilled": "distilled student (slides)",
}
HEADLINE = {"diagnosis": ("auc", "accuracy"), "grading": ("auc", "accuracy"), "survival": ("c_index",)}
_COUNTS = frozenset(
    ("patients", "classes", "events", "comparable_pairs", "concordant", "discordant", "tied_risk", "tied_time")
)
_TITLES = {"auc": "AUC", "accuracy": "Acc", "c_index": "C-index"}


def results_table(
    runs: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]], label: str, *, every: bool = False
) -> pd.DataFrame:
    """One row per model: the headline metrics on every test set, mean and standard deviation over runs.

    Args:
        runs: of every fold or seed, {model: {test set: {metric: value}}}.
        label: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        every: all measures of quality instead of the headline.

    Returns:
        Text: ``0.912`` for one run, ``0.912 ± 0.010`` for several (standard deviation, n - 1).

    Raises:
        ValueError: the label is unknown, or there is no run.
    """
    check_choice("label", label, HEADLINE)
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    rows: dict[str, dict[str, str]] = {}
    for model in runs[0]:
        row: dict[str, str] = {}
        for test in runs[0][model]:
            metrics = [run[model][test] for run in runs]
            for metric in [m for m in metrics[0] if m not in _COUNTS] if every else HEADLINE[label]:
                title = f"{test} {_TITLES.get(metric, metric)}"
                row[title] = _mean_and_spread([m[metric] for m in metrics])
        rows[NAMES[model]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean_and_spread(values: Sequence[float | None]) -> str:
    numbers = np.array(values, dtype=float)  # None becomes NaN
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1):.3f}"
