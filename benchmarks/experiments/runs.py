"""Runs: one variant on one trial is one JSON file, which appears whole or not at all.

A file holds everything that its numbers depend on: settings, versions, commit and device. It also holds the metrics,
the predictions of every test patient, and the seconds. A file whose settings differ from those of today counts as
missing.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from disentangled_mil._files import replacing
from disentangled_mil.train import TrainingOptions

from ..results import environment
from .experiment import Case, Outcome, Trial, Variant

RUNS = Path(__file__).parents[2] / "runs" / "experiments"
_DIGITS = 5  # of predictions


class Run(NamedTuple):
    """A run that is stored.

    Attributes:
        variant: name of the variant.
        cohort: name of the cohort.
        task: name of the task.
        seed: seed of the trial.
        fold: fold of the trial.
        settings: options of the training and of the variant.
        environment: versions, commit and device.
        seconds: time of the run.
        metrics: {test set: {metric: value}}.
        predictions: {test set: {column: values}}, one value per patient.
        measures: other numbers.
        maps: views of one slide.
    """

    variant: str
    cohort: str
    task: str
    seed: int
    fold: int
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float
    metrics: Mapping[str, Mapping[str, float | None]]
    predictions: Mapping[str, Mapping[str, list[Any]]]
    measures: Mapping[str, float | None]
    maps: Mapping[str, Any]

    @classmethod
    def of(cls, variant: Variant, trial: Trial, outcome: Outcome, seconds: float) -> "Run":
        """The run of a variant on a trial that has just ended."""
        return cls(
            variant.name,
            *trial.case,
            trial.seed,
            trial.fold,
            settings_of(variant, trial.options),
            environment(),
            round(seconds, 2),
            {test: _finite(values) for test, values in outcome.metrics.items()},
            _columns(outcome.predictions),
            _finite(outcome.measures),
            outcome.maps,
        )

    @property
    def case(self) -> Case:
        """Cohort and task."""
        return Case(self.cohort, self.task)

    def table(self, test: str) -> pd.DataFrame:
        """Predictions and labels of a test set, indexed by patient."""
        return pd.DataFrame(self.predictions[test]).set_index("patient")


def path_of(folder: Path, variant: Variant, case: Case, seed: int, fold: int) -> Path:
    """The file of a run."""
    name = variant.name.replace(" ", "-").replace("%", "").replace("+", "and").replace(",", "")
    return folder / f"{case.cohort}-{case.task}" / name / f"seed{seed}-fold{fold}.json"


def settings_of(variant: Variant, options: TrainingOptions) -> dict[str, Any]:
    """All that decides the numbers of a run beside its trial, as JSON values."""
    chosen = {name: value for name, value in asdict(options).items() if name not in ("seed", "device")}
    return {"options": chosen, "method": plain(variant.method)}


def plain(value: Any) -> Any:
    """A value as JSON: functions by name, data classes by their fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if inspect.isfunction(value) or isinstance(value, type):
        return value.__qualname__
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"a setting must be a plain value, a function or a data class, got {value!r}")


def read(path: Path) -> Run | None:
    """The run of a file, or None without the file."""
    return Run(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def keep(path: Path, run: Run) -> None:
    """Store a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(run._asdict(), allow_nan=False) + "\n", encoding="utf-8")


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: None in place of NaN."""
    return {name: None if value != value else value for name, value in values.items()}


def _columns(predictions: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """The predictions of every test set by column, rounded; risks stand for hazards."""
    tests: dict[str, dict[str, list[Any]]] = {}
    for test, rows in predictions.groupby("test", sort=False) if len(predictions) else ():
        columns = [name for name in rows if name != "test" and not name.startswith("hazard_")]
        tests[str(test)] = {
            name: [round(value, _DIGITS) if isinstance(value, float) else value for value in rows[name].tolist()]
            for name in columns
        }
    return tests
