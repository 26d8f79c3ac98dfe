"""The work of most variants: the reference training with other options, patients or targets."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from disentangled_mil.train import Split, load_model, run_split
from disentangled_mil.train.datasets import Batch, CohortDataset
from disentangled_mil.train.out_of_fold import FOLDER, OF_STUDENTS
from disentangled_mil.train.training import AlterTargets

from .experiment import Outcome, Trial
from .networks import cost
from .runs import plain

Change = Callable[[Split, int], Split]  # split and seed -> changed split
Measure = Callable[[Path, Trial, Split], Mapping[str, float]]  # folder of the checkpoints, trial, its changed split


@dataclass(frozen=True)
class Training:
    """The reference training of some models.

    Args:
        models: models that are trained, some of ``disentangled_mil.train.MODELS``. The last one counts.
        options: options of the training that differ from those of the cohort.
        change: change of the split, such as fewer patients with expression.
        targets: change of the targets of distillation, such as :class:`~.targets.Permuted`.
        measures: other numbers, from checkpoints and logs.
    """

    models: tuple[str, ...] = ("student",)
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None
    targets: AlterTargets | None = None
    measures: tuple[Measure, ...] = ()

    def __call__(self, trial: Trial) -> Outcome:
        """Train the models, and keep the predictions of the last one."""
        options = replace(trial.options, **self.options)
        split = self.change(trial.split, trial.seed) if self.change else trial.split
        start = time.perf_counter()
        with _folder(trial, options, self.change) as folder:
            # Nothing but cross-fitted teachers can be there to resume.
            result = run_split(
                split,
                trial.case.task,
                options,
                folder,
                models=self.models,
                alter_targets=self.targets,
                cache=trial.cache,
                resume=True,
                quiet=True,
            )
            measured = {"training s per patient": (time.perf_counter() - start) / len(split.train.patients)}
            for measure in self.measures:
                measured |= measure(folder, trial, split)
        if result.headroom is not None:
            headroom = result.headroom
            measured |= {"headroom": headroom.difference, "headroom, low": headroom.low}
        model = self.models[-1]
        predictions = result.predictions[result.predictions["model"] == model].drop(columns="model")
        return Outcome(result.metrics[model], predictions, measured)


@contextmanager
def _folder(trial: Trial, options: Any, change: Change | None) -> Iterator[Path]:
    """A folder of its own, in which cross-fitted teachers are those that all variants of the trial share."""
    deciding = {name: value for name, value in asdict(options).items() if name not in OF_STUDENTS}
    digest = hashlib.sha256(json.dumps([deciding, plain(change)]).encode()).hexdigest()[:12]
    shared = trial.folder / f"{FOLDER}-{digest}"
    shared.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=trial.folder) as name:
        folder = Path(name)
        (folder / FOLDER).symlink_to(shared.resolve(), target_is_directory=True)
        yield folder


def prediction_cost(folder: Path, trial: Trial, split: Split) -> Mapping[str, float]:
    """Time and memory of the prediction of one patient."""
    kind = next(kind for kind in ("student", "teacher", "genes") if (folder / f"{kind}.json").exists())
    model = load_model(folder / kind).model
    task, pipeline = split.train.fit_task(trial.case.task), split.train.fit_expression()
    dataset = CohortDataset(next(iter(split.tests.values())), trial.case.task, task, pipeline, cache=trial.cache)

    def predict(batch: Batch) -> object:
        return model(*{"student": (batch.bags,), "teacher": (batch.bags, batch.genes), "genes": (batch.genes,)}[kind])

    return cost(predict, dataset)
