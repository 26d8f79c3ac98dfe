"""The report of a finished run as text: what was tested, how well each model predicts, and what distillation brings."""

from collections.abc import Mapping
from typing import Any

from ..tasks import Task
from .tables import folds_table, gains_table, headroom_table, results_table, title_of

# What a test set is, for readers who did not write the run.
TEST_SETS = {
    "test": "every patient is tested once, by the models of a fold that did not train on the patient",
    "test with expression": "the patients of `test` who have expression, for whom all models predict",
    "internal": "held-out patients of the hospital whose patients train",
    "external": "patients of another simulated hospital, with another stain and scanner",
}
_GAINS = (
    "gain and its 95 % interval over patients; above 0 the first model is better, an interval around 0 tells nothing"
)
_HEADROOM = "headroom: what the teacher knows beyond the slides, about training patients that it had not seen"


def run_report(content: Mapping[str, Any], task: Task | type[Task]) -> str:
    """The report of a run.

    Args:
        content: content of ``metrics.json``.
        task: task, or the class of its kind.

    Returns:
        The text: a block per test set, then gains and headroom.

    Raises:
        LookupError: the content lacks a part.
    """
    blocks = [_test_set(test, content, task) for test in content["tests"]]
    gains = gains_table(content["gains"], task)
    if not gains.empty:
        blocks.append(f"{_GAINS}\n{gains.to_string()}")
    headroom = headroom_table(content["headroom"], task)
    if not headroom.empty:
        blocks.append(f"{_HEADROOM}\n{headroom.to_string()}")
    if any("nan" in block for block in blocks):
        blocks.append(task.undefined)
    return "\n\n".join(blocks)


def _test_set(test: str, content: Mapping[str, Any], task: Task | type[Task]) -> str:
    """The patients of a test set, the table of all models, and the folds where there are several."""
    splits, counts = content["splits"], content["tests"][test]
    several, all_of_them = len(splits) > 1, counts["all"]
    table = results_table(splits, task, test, every=several, chance=all_of_them["chance"])
    meaning = f": {TEST_SETS[test]}" if test in TEST_SETS else ""
    lines = [f"{test}{meaning}", f"{all_of_them['patients']} patients: {all_of_them['labels']}", table.to_string()]
    if several:
        title = title_of(next(iter(task.headline)), task)
        lines.append(f"mean ± standard deviation of {len(splits)} folds; {title} in each fold:")
        lines.append(folds_table(splits, task, test, counts["splits"]).to_string())
    return "\n".join(lines)
