"""Training runs that are kept, one JSON file for each cohort and task, and the tables that are made of them.

``python -m benchmarks.quality COHORT FOLDER ... --command COMMAND`` keeps finished run folders. Several folders are the
seeds of one experiment. A file that is kept holds the metrics of every fold or seed, the command and the commit.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from disentangled_mil._files import replacing

from .results import code_state

Metric: TypeAlias = (
    Sequence[float | None] | dict[str, float]
)  # one value a fold or seed; of old runs the mean and deviation
Metrics: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Metric]]]  # {model: {test set: {metric: values}}}

RESULTS = Path(__file__).parent / "results" / "quality"
HEADLINES = {"auc": "AUC", "accuracy": "Acc", "c_index": "C-index"}
TEST_SETS = {"test": "", "internal": ", held-out", "external": ", external"}  # in the order of the columns
OWN = {
    "linear": ("**linear model**", "slides"),
    "genes": ("**SNN on genes**", "RNA"),
    "teacher": ("**teacher**", "slides + RNA"),
    "student": ("**student from scratch**", "slides"),
    "distilled": ("**distilled student**", "slides"),
}


class Run(NamedTuple):
    """The metrics of one task on one cohort, and how they came about.

    Attributes:
        cohort: the name of the cohort.
        task: the name of the task.
        source: the command and the commit, or the place from which the numbers were taken.
        models: the metrics of every model on every test set.
    """

    cohort: str
    task: str
    source: str
    models: Metrics


def read(folder: Path = RESULTS) -> list[Run]:
    """Read all runs that are kept: numbers of others first, then our own, tasks in the order of their names."""
    runs = [Run(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return sorted(runs, key=lambda run: (run.models.keys() <= OWN.keys(), run.task))


def keep(cohort: str, folders: Sequence[Path], command: str, results: Path = RESULTS) -> Path:
    """Keep finished run folders of one task as one file.

    Args:
        cohort: the name under which the run appears on the pages.
        folders: finished run folders; several are the seeds of one experiment.
        command: the command that wrote them.
        results: the folder of the file.

    Returns:
        The file.

    Raises:
        ValueError: the folders belong to different tasks.
    """
    finished = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    tasks = {run["task"] for run in finished}
    if len(tasks) != 1:
        raise ValueError(f"folders must be runs of one task, got {', '.join(sorted(map(str, tasks)))}")
    (task,) = tasks
    runs = [metrics for run in finished for metrics in run["splits"]]
    models = {}
    for model in dict.fromkeys(name for run in runs for name in run):  # distillation may be declined in some runs
        trained = [run[model] for run in runs if model in run]
        models[model] = {
            test: {name: [tests[test][name] for tests in trained] for name in metrics}
            for test, metrics in trained[0].items()
        }
    path = results / f"{cohort}-{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = Run(cohort, task, f"`{command}` at {code_state()}", models)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept._asdict(), indent=1) + "\n", encoding="utf-8")
    return path


def table(cohort: str, runs: Iterable[Run], *, brief: bool = False) -> str:
    """Make the table of a cohort in Markdown: a row for each model, a column for each task and test set.

    Args:
        cohort: the name of the cohort.
        runs: runs that are kept, of any cohort.
        brief: whether to leave out the deviations and the sources.

    Returns:
        The table, and below it where the numbers come from.
    """
    own = [run for run in runs if run.cohort == cohort]
    columns: dict[tuple[str, str], set[str]] = {}  # metrics by task and test set
    cells: dict[str, dict[tuple[str, str], Mapping[str, Metric]]] = {}
    for run in own:
        for model, tests in run.models.items():
            for test, metrics in tests.items():
                columns.setdefault((run.task, test), set()).update(metrics.keys() & HEADLINES.keys())
                cells.setdefault(model, {})[run.task, test] = metrics
    headlines = {
        column: [name for name in HEADLINES if name in metrics]
        for column, metrics in sorted(columns.items(), key=_place)
    }
    lines = [
        markdown_row(["model", "inputs at test", *(_title(*column, names) for column, names in headlines.items())])
    ]
    lines.append(markdown_row(["---"] * (2 + len(columns))))
    for model, row in cells.items():
        values = (
            " / ".join(shown(row[c].get(n), brief) for n in names) if c in row else _absent(model, c, cells)
            for c, names in headlines.items()
        )
        lines.append(markdown_row([*_label(model), *values]))
    if not brief:
        sources: dict[str, list[str]] = {}  # tasks that share a source
        for run in own:
            sources.setdefault(f"{_of(run)}: {run.source}", []).append(run.task)
        lines += ["", *(f"* {', '.join(tasks)}, {source}." for source, tasks in sources.items())]
    return "\n".join(lines)


def _absent(model: str, column: tuple[str, str], cells: Mapping[str, Mapping[tuple[str, str], object]]) -> str:
    """Say why a cell is empty: a run with a student but no distilled one has declined to distill."""
    return "declined" if model == "distilled" and column in cells.get("student", {}) else ""


def _of(run: Run) -> str:
    return "this package" if run.models.keys() <= OWN.keys() else "linear and released models"


def _label(model: str) -> tuple[str, str]:
    """Name a model and its inputs; models of others hold both in their name."""
    name, _, inputs = model.partition("; ")
    return OWN.get(model, (name, inputs))


def _place(column: tuple[tuple[str, str], set[str]]) -> tuple[str, int, str]:
    """Sort columns by task, then known test sets before others."""
    (task, test), _ = column
    return task, [*TEST_SETS, test].index(test), test


def _title(task: str, test: str, metrics: Iterable[str]) -> str:
    return f"{task}{TEST_SETS.get(test, f', {test}')} {' / '.join(HEADLINES[name] for name in metrics)}"


def shown(metric: Metric | None, brief: bool) -> str:
    """Show the mean and the deviation of a metric."""
    if metric is None or None in metric:
        return "–"
    if isinstance(metric, Mapping):
        mean, deviation = metric["mean"], metric["sd"]
    else:
        values = [value for value in metric if value is not None]
        mean = statistics.fmean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.3f}" if brief or not deviation else f"{mean:.3f}\u00a0±\u00a0{deviation:.3f}"


def markdown_row(cells: Iterable[str]) -> str:
    """Make a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep run folders, and say where."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Keep finished training runs.")
    parser.add_argument("cohort", help="name of the cohort on the pages, such as tcga_gbmlgg or planted")
    parser.add_argument("folders", nargs="+", type=Path, help="finished run folders of one task; several are seeds")
    parser.add_argument("--command", required=True, help="command that wrote the folders")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the file (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        path = keep(options.cohort, options.folders, options.command, options.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"kept in {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
