"""The work of most variants: the reference training with other options, patients or targets."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from disentangled_mil.train import Split, load_model, run_split
from disentangled_mil.train.datasets import CohortDataset

from .experiment import Outcome, Trial
from .networks import cost

Change = Callable[[Split, int], Split]  # split and seed -> changed split
Measure = Callable[[Path, Trial, Split], Mapping[str, float]]  # folder of the checkpoints, trial, its changed split


@dataclass(frozen=True)
class Training:
    """The reference training of some models.

    Args:
        models: models that are trained, in order; a distilled student needs the teacher before it. The last one counts.
        options: options of the training that differ from those of the cohort.
        change: change of the split, such as fewer patients with expression.
        measures: other numbers, from checkpoints and logs.
    """

    models: tuple[str, ...] = ("student",)
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None
    measures: tuple[Measure, ...] = ()

    def __call__(self, trial: Trial) -> Outcome:
        """Train the models, and keep the predictions of the last one."""
        options = replace(trial.options, **self.options)
        split = self.change(trial.split, trial.seed) if self.change else trial.split
        with TemporaryDirectory(dir=trial.folder) as name:
            folder = Path(name)
            start = time.perf_counter()
            result = run_split(
                split, trial.case.task, options, folder, models=self.models, cache=trial.cache, quiet=True
            )
            seconds = time.perf_counter() - start
            measured = {key: value for measure in self.measures for key, value in measure(folder, trial, split).items()}
            measured["training s per patient"] = seconds / len(split.train.patients)
        predictions = result.predictions[result.predictions["model"] == self.models[-1]].drop(columns="model")
        return Outcome(result.metrics[self.models[-1]], predictions, measured)


def prediction_cost(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """Time and memory of the prediction of one patient."""
    kind = next(kind for kind in ("student", "teacher", "genes") if (folder / f"{kind}.json").exists())
    model = load_model(folder / kind)[0]
    task, pipeline = split.train.fit_task(trial.case.task), split.train.fit_expression()
    dataset = CohortDataset(next(iter(split.tests.values())), trial.case.task, task, pipeline, cache=trial.cache)
    inputs = {
        "student": lambda batch: (batch.bags,),
        "teacher": lambda batch: (batch.bags, batch.genes),
        "genes": lambda batch: (batch.genes,),
    }
    return cost(lambda batch: model(*inputs[kind](batch)), dataset)
