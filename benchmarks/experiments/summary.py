"""The summary of an experiment: what its stored runs say, as one small JSON file in the repository.

Runs hold every prediction and stay outside of the repository. A summary holds the metrics of every run, the paired
differences and what the runs depend on. Tables, figures and pages are made of summaries alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from disentangled_mil._files import replacing
from disentangled_mil.metrics import paired_difference
from disentangled_mil.tasks import KINDS

from ..results import RESULTS
from .bootstrap import Array, bootstrapped
from .experiment import Case, Experiment
from .runs import Run
from .schedule import Job, Plan

SUMMARIES = RESULTS / "experiments"
HEADLINES = {name: title for kind in KINDS.values() for name, title in kind.headline.items()}


class Row(NamedTuple):
    """A variant on a test set of a case.

    Attributes:
        variant: name of the variant.
        cohort: name of the cohort.
        task: name of the task.
        test: name of the test set.
        metrics: {metric: value of every run}, in the order of seeds and folds.
    """

    variant: str
    cohort: str
    task: str
    test: str
    metrics: Mapping[str, Sequence[float | None]]


class Gain(NamedTuple):
    """The paired difference of two variants on a test set, with its 95 % interval."""

    variant: str
    over: str
    cohort: str
    task: str
    test: str
    metric: str
    difference: float
    low: float
    high: float
    patients: int


class Measured(NamedTuple):
    """Another number of a variant, in every run."""

    variant: str
    cohort: str
    task: str
    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Summary:
    """What the stored runs of an experiment say.

    Args:
        name: name of the experiment.
        rows: metrics.
        gains: paired differences.
        measures: other numbers.
        maps: views of one slide of a case, from the first run of every variant.
        seeds: seeds of each case, as ``"cohort task"``.
        stored: number of runs.
        planned: number of runs of the full experiment.
        seconds: time of the stored runs on one core.
        expected_seconds: time of the full experiment on one core; variants that never ran do not count.
        commits: commits of the runs, with a note where something was changed.
        versions: versions of libraries.
        devices: devices.
    """

    name: str
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    measures: tuple[Measured, ...]
    maps: Sequence[Mapping[str, Any]]
    seeds: Mapping[str, Sequence[int]]
    stored: int
    planned: int
    seconds: float
    expected_seconds: float
    commits: Sequence[str]
    versions: Mapping[str, str]
    devices: Sequence[str]

    def of(self, case: Case) -> tuple[Row, ...]:
        """The rows of a case."""
        return tuple(row for row in self.rows if (row.cohort, row.task) == case)


def summarize(plan: Plan, full: Plan) -> Summary:
    """Summarize the stored runs of a plan.

    Args:
        plan: trials whose runs are read.
        full: trials of the full experiment.
    """
    experiment = plan.experiment
    runs = [run for job in plan.jobs() if (run := job.stored())]
    rows: dict[tuple[str, str, str, str], dict[str, list[float | None]]] = {}
    measures: dict[tuple[str, str, str, str], list[float | None]] = {}
    maps: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in runs:
        for test, values in run.metrics.items():
            row = rows.setdefault((run.variant, run.cohort, run.task, test), {})
            for name in HEADLINES.keys() & values.keys():
                row.setdefault(name, []).append(values[name])
        if run.maps:
            named = {"variant": run.variant, "cohort": run.cohort, "task": run.task}
            maps.setdefault((run.variant, *run.case), {**named, **run.maps})
        for name, value in run.measures.items():
            measures.setdefault((run.variant, run.cohort, run.task, name), []).append(value)
    return Summary(
        experiment.name,
        tuple(Row(*key, {name: row[name] for name in HEADLINES if name in row}) for key, row in rows.items()),
        tuple(gain for case in plan.cases for gain in _gains(experiment, [run for run in runs if run.case == case])),
        tuple(Measured(*key, values) for key, values in measures.items()),
        list(maps.values()),
        {f"{case.cohort} {case.task}": sorted({r.seed for r in runs if r.case == case}) for case in plan.cases},
        len(runs),
        len(list(full.jobs())),
        round(sum(run.seconds for run in runs), 1),
        round(_expected(list(full.jobs()), runs), 1),
        list(dict.fromkeys(_commit(run) for run in runs)),
        {name: version for run in runs for name, version in run.environment["versions"].items()},
        sorted({run.environment["device"] for run in runs}),
    )


def _gains(experiment: Experiment, runs: Sequence[Run]) -> list[Gain]:
    """The differences from the reference, and those of further pairs, on the trials that both have."""
    by_variant: dict[str, dict[tuple[int, int], Run]] = {}
    for run in runs:
        if run.predictions:
            by_variant.setdefault(run.variant, {})[run.seed, run.fold] = run
    wanted = [(name, experiment.reference) for name in by_variant if name != experiment.reference]

    @cache
    def draws(variant: str, test: str, metric: str, trials: tuple[tuple[int, int], ...]) -> Array:
        return bootstrapped(metric, [by_variant[variant][trial].table(test) for trial in trials])

    gains = []
    for name, over in [*wanted, *experiment.pairs]:
        trials = tuple(trial for trial in by_variant.get(name, {}) if trial in by_variant.get(over, {}))
        if not trials:
            continue
        first, second = (by_variant[each][trials[0]] for each in (name, over))
        for test in (test for test in first.predictions if test in second.predictions):
            metric = next(each for each in HEADLINES if each in first.metrics[test])
            found = paired_difference(*(draws(each, test, metric, trials) for each in (name, over)))
            difference, low, high = (round(value, 5) for value in found)
            patients = len({patient for trial in trials for patient in by_variant[name][trial].table(test).index})
            gains.append(Gain(name, over, *first.case, test, metric, difference, low, high, patients))
    return gains


def _expected(jobs: Sequence[Job], runs: Sequence[Run]) -> float:
    """The time of all jobs, judged by the stored runs of the same variant and case."""
    seconds: dict[tuple[str, Case], list[float]] = {}
    for run in runs:
        seconds.setdefault((run.variant, run.case), []).append(run.seconds)
    return sum(median(seconds[job.variant.name, job.case]) for job in jobs if (job.variant.name, job.case) in seconds)


def _commit(run: Run) -> str:
    environment = run.environment
    return f"{str(environment['commit'])[:7]}{' with changes' if environment['changed'] else ''}"


def path_of(name: str, folder: Path = SUMMARIES) -> Path:
    """The file of a summary."""
    return folder / f"{name}.json"


def keep(summary: Summary, folder: Path = SUMMARIES) -> Path:
    """Store a summary; return its file."""
    path = path_of(summary.name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = dict(vars(summary))
    for key in ("rows", "gains", "measures"):
        content[key] = [each._asdict() for each in content[key]]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read(name: str, folder: Path = SUMMARIES) -> Summary | None:
    """The summary of an experiment, or None if none is stored."""
    path = path_of(name, folder)
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, kind in (("rows", Row), ("gains", Gain), ("measures", Measured)):
        content[key] = tuple(kind(**each) for each in content[key])
    return Summary(**content)
