"""The files of a finished run, as a report reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from .._errors import FileError, reading
from .._files import read_json
from .._tables import unguarded
from ..tasks import KINDS, Task
from .tables import NAMES

# Models in the order in which one would be used for a new slide.
_PREFERENCE = ("distilled", "student", "linear", "teacher", "genes")


class RunFiles(NamedTuple):
    """A finished run.

    Attributes:
        path: folder of the run.
        kind: class of the task's kind.
        run: content of ``run.json``.
        metrics: content of ``metrics.json``.
        predictions: content of ``predictions.csv`` as text, with the column ``fold`` and without the quotes that guard
            formulas.
        folders: folder of every split, with its checkpoints and logs.
    """

    path: Path
    kind: type[Task]
    run: dict[str, Any]
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    folders: list[Path]

    def tables(self, test: str) -> dict[str, pd.DataFrame]:
        """The predictions for a test set by model, one row per patient."""
        rows = self.predictions[self.predictions["test"] == test]
        return {str(model): table.reset_index(drop=True) for model, table in rows.groupby("model", sort=False)}

    @property
    def cohort(self) -> str | None:
        """The digest of the cohort's inputs; None for a simulated cohort."""
        cohort = self.run.get("cohort")
        return str(cohort["inputs"]) if isinstance(cohort, dict) and "inputs" in cohort else None

    @property
    def tests(self) -> list[str]:
        """The names of the test sets."""
        return list(dict.fromkeys(self.predictions["test"]))

    def about(self, test: str) -> str:
        """The beginning of a text about a test set; nothing where there is one test set only."""
        return f"Test set {test}: " if len(self.tests) > 1 else ""

    def name_of(self, model: str, test: str) -> str:
        """The name of a model; with its number of patients where it predicts for fewer of them than others."""
        tables = self.tables(test)
        name, most = NAMES.get(model, model), max(map(len, tables.values()))
        own = len(tables[model]) if model in tables else most
        return name if own == most else f"{name}, {own} of {most} patients"

    def is_partial(self, test: str) -> bool:
        """Whether a model predicts for fewer patients of a test set than another one."""
        return len(set(map(len, self.tables(test).values()))) > 1

    def chosen(self, test: str) -> str:
        """The model that one would use for new slides, among those that predict for most patients of a test set."""
        tables = self.tables(test)
        most = max(map(len, tables.values()))
        return next(model for model in (*_PREFERENCE, *tables) if len(tables.get(model, ())) == most)


def read_run(path: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS) -> RunFiles:
    """Read the files of a finished run.

    Args:
        path: folder of the run.
        kinds: class of every kind of task.

    Returns:
        The run.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        FileError: a file is damaged, or the kind of the task is unknown.
    """
    path = Path(path)
    if not (path / "metrics.json").is_file():
        raise FileNotFoundError(f"{path}: must be the folder of a finished run, but it has no metrics.json")
    run = read_json(path / "run.json", "describe the run")
    metrics = read_json(path / "metrics.json", "hold the metrics of the finished run")
    if lacking := [key for key in ("splits", "tests", "gains", "headroom") if key not in metrics]:
        raise FileError(
            f"{path / 'metrics.json'}: must hold the metrics of a finished run, got no {lacking[0]!r}",
            path / "metrics.json",
            lacking[0],
        )
    try:
        kind = kinds[run["task"]["kind"]]
    except (LookupError, TypeError) as error:
        raise FileError(
            f"{path / 'run.json'}: must name a kind of task, one of {', '.join(kinds)}", path / "run.json", "task.kind"
        ) from error
    predictions = _predictions(path / "predictions.csv", kind)
    if "fold" not in predictions.columns:
        predictions.insert(0, "fold", "0")
    with reading(path / "predictions.csv", "fold"):
        predictions["fold"] = [str(int(fold)) for fold in predictions["fold"]]
    folds = sorted(path.glob("fold[0-9]*"), key=lambda folder: (len(folder.name), folder.name))
    return RunFiles(path, kind, run, metrics, predictions, folds or [path])


def _predictions(path: Path, kind: type[Task]) -> pd.DataFrame:
    """The table of predictions, with the names as they were before they were written."""
    try:
        # All cells stay text, because a class may be called "NA" or "01".
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise FileError(f"{path}: must be a table of predictions: {error}", path) from error
    wanted = ("model", "test", "patient", *(column.name for column in kind.columns))
    if table.empty or (lacking := [name for name in wanted if name not in table.columns]):
        found = "no row" if table.empty else f"no column {lacking[0]!r}"
        raise FileError(f"{path}: must be a table of predictions, got {found}", path)
    return table.rename(columns=unguarded).map(unguarded)
