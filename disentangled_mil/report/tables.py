"""Tables of results as people read them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..tasks import Task

NAMES = {
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
        A table of text: ``0.912`` for one split, ``0.912 ± 0.010`` for several (standard deviation, n - 1).

    Raises:
        ValueError: there is no split.
    """
    if not splits:
        raise ValueError("splits must hold the metrics of at least one split, got none")
    rows: dict[str, dict[str, str]] = {}
    for model in splits[0]:
        row: dict[str, str] = {}
        for test in splits[0][model]:
            metrics = [split[model][test] for split in splits]
            for metric in [m for m in metrics[0] if m not in task.counts] if every else task.headline:
                title = f"{test} {task.headline.get(metric, metric)}"
                row[title] = _mean_and_spread([m[metric] for m in metrics])
        rows[NAMES[model]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean_and_spread(values: Sequence[float | None]) -> str:
    numbers = np.array(values, dtype=float)  # None becomes NaN
    if len(numbers) == 1:
        return f"{numbers[0]:.3f}"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1):.3f}"
