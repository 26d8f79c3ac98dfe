"""Where models look: prototypes and attention per tile, against the true regions.

The truth of a planted slide is where tumor was planted. The truth of a kidney slide is its map of tumor probability.
All features of that slide were computed from the map. So the question there is only whether a model finds the regions
that its input states.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from disentangled_mil.bags import Bag, Grid
from disentangled_mil.data import Cohort
from disentangled_mil.explain import region_agreement, student_view, teacher_view
from disentangled_mil.models import Student, Teacher
from disentangled_mil.train import Split, load_model, run_split
from disentangled_mil.train.datasets import CohortDataset

from .cohorts import planted
from .experiment import Outcome, Trial
from .kidney import TUMOR

_SLIDES = 60


@dataclass(frozen=True)
class Looks:
    """Train a model, and compare what it looks at with the truth on held-out slides.

    Args:
        model: ``"student"``, ``"distilled"``, ``"teacher"``, or ``"k-means"`` of the patches of each slide.
    """

    model: str

    def __call__(self, trial: Trial) -> Outcome:
        """Train, and compare."""
        held = next(iter(trial.split.tests.values()))
        if self.model == "k-means":
            return _compared(trial, held, lambda bags, genes: {n: _clustered(bag) for n, bag in bags.items()})
        models = ("teacher", "distilled") if self.model == "distilled" else (self.model,)
        options = replace(trial.options, distill="always", distillation_targets="in_sample")
        with TemporaryDirectory(dir=trial.folder) as name:
            folder, task = Path(name), trial.case.task
            result = run_split(trial.split, task, options, folder, models=models, cache=trial.cache, quiet=True)
            model = load_model(folder / self.model).model
        look = _teacher(cast(Teacher, model)) if self.model == "teacher" else _student(cast(Student, model))
        outcome = _compared(trial, held, look)
        rows = result.predictions[result.predictions["model"] == self.model].drop(columns="model")
        return Outcome(result.metrics[self.model], rows, outcome.measures, outcome.maps)


def _student(model: Student):  # type: ignore[no-untyped-def]
    """Where a student looks: the tokens of its first prototype, and its attention."""

    def look(bags: Mapping[str, Bag], genes: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        views = {name: student_view(branch, model.subspaces) for name, branch in model(bags).branches.items()}
        first = model.subspaces[0]
        return {n: {"prototype": view[first], "attention": view["attention"]} for n, view in views.items()}

    return look


def _teacher(model: Teacher):  # type: ignore[no-untyped-def]
    """Where a teacher looks: the attention of every subspace."""

    def look(bags: Mapping[str, Bag], genes: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        views = {name: teacher_view(branch) for name, branch in model(bags, genes).branches.items()}
        return {
            name: {f"attention {subspace}": view[f"attention_{subspace}"] for subspace in model.subspaces}
            for name, view in views.items()
        }

    return look


def _clustered(bag: Bag) -> dict[str, Tensor]:
    """Two clusters of the patches of one slide; no model is trained."""
    patches = bag.patches[0].numpy()
    if len(patches) < 2:
        return {"prototype": torch.zeros(len(patches))}
    found = KMeans(2, n_init=3, random_state=0).fit_predict(patches / patches.std(0).clip(1e-6))
    return {"prototype": torch.from_numpy(found).float()}


@torch.no_grad()
def _compared(trial: Trial, cohort: Cohort, look: Any) -> Outcome:
    """Compare every view of every slide with the truth."""
    found: dict[str, list[float]] = {}
    maps: dict[str, Any] = {}
    for name, bags, genes, truths in _slides(trial, cohort):
        for size, views in look(bags, genes).items():
            truth = truths[size]
            if 0 < truth.sum() < len(truth):
                for view, values in views.items():
                    for key, value in agreement(view, values, torch.from_numpy(truth)).items():
                        found.setdefault(f"{key}, {size}", []).append(value)
                if not maps and size in ("20x", "fine"):
                    grid = cast(Grid, bags[size].grid)
                    drawn = {"truth": truth.astype(float), **{view: v.numpy() for view, v in views.items()}}
                    maps = {"slide": name, "views": {view: _laid_out(grid, v) for view, v in drawn.items()}}
    return Outcome({}, pd.DataFrame(), {key: fmean(values) for key, values in found.items()}, maps)


def _slides(
    trial: Trial, cohort: Cohort
) -> Iterator[tuple[str, dict[str, Bag], dict[str, Tensor], dict[str, NDArray[np.bool_]]]]:
    """Name, bags, genes and true regions of the held-out slides."""
    split: Split = trial.split
    task, pipeline = split.train.fit_task(trial.case.task), split.train.fit_expression()
    dataset = CohortDataset(cohort, trial.case.task, task, pipeline, cache=trial.cache)
    for row in range(min(_SLIDES, len(dataset))):
        batch, sample = dataset.batch([row]), dataset.samples[row]
        if trial.case.cohort == "planted":
            regions = planted(trial.seed).regions[sample.name]
            truths = {size: region.numpy() for size, region in regions.items()}
        else:  # the first feature of a kidney tile is its tumor probability
            truths = {size: bag.patches[0, :, 0].numpy() >= TUMOR for size, bag in batch.bags.items()}
        yield sample.name, batch.bags, batch.genes, truths


def agreement(view: str, values: Tensor, truth: Tensor) -> dict[str, float]:
    """Dice of a prototype, as named and with the better name; AUROC of everything else.

    Args:
        view: ``"prototype"``, or the name of a score.
        values: value of every tile.
        truth: mask of the tiles in the region.
    """
    found = region_agreement(values, truth)
    if view != "prototype":
        return {f"AUROC {view}": found["auroc"]}
    other = region_agreement(1 - values, truth)["dice"]
    # Calling every tile tumor is what any map must exceed.
    return {"Dice": found["dice"], "Dice, best name": max(found["dice"], other), "Dice, all tumor": found["dice_all"]}


def _laid_out(grid: Grid, values: NDArray[np.float64]) -> list[list[float | None]]:
    """Values on the grid of the slide; None where there is no tissue."""
    picture: list[list[float | None]] = [[None] * grid.width for _ in range(grid.height)]
    for (x, y), value in zip(grid.cells[0].tolist(), values.tolist(), strict=True):
        picture[y][x] = float(f"{value:.3g}")
    return picture
