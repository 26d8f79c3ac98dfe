"""Prototypes of the students of a finished run, against the true regions of kidney slides.

``python -m benchmarks.kidney_maps COHORT.toml RUN`` takes the student from scratch and the distilled student of every
fold that has both, and slides of its test patients, 60 at most. The first feature of a tile is its tumor probability,
and from 0.3 it counts as tumor. Slides of one kind of tile are left out. Rows are means over slides. A difference has
a bootstrap interval over patients.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from disentangled_mil.data import Cohort, read_cohort
from disentangled_mil.explain import student_view
from disentangled_mil.metrics import bootstrap_patients
from disentangled_mil.tasks import KINDS
from disentangled_mil.train import load_model
from disentangled_mil.train.fold_results import RESULT, load_result

from .experiments.kidney import TUMOR
from .experiments.looks import agreement

MODELS = ("student", "distilled")


@torch.no_grad()
def compared(cohort: Cohort, folds: Sequence[Path], most: int) -> Iterator[dict[str, Any]]:
    """One row for every test slide, magnification and model; at most ``most`` slides of a fold."""
    for fold in folds:
        models: dict[str, Any] = {name: load_model(fold / name).model for name in MODELS}
        tested = load_result(fold, KINDS)[0].predictions["patient"].unique()
        for sample in cohort.subset(list(tested)).samples[:most]:
            bags = sample.load()
            for name, model in models.items():
                branches = model(bags).branches
                for size, bag in bags.items():
                    truth = bag.patches[0, :, 0] >= TUMOR
                    if 0 < truth.sum() < len(truth):
                        view = student_view(branches[size], model.subspaces)
                        found = agreement("prototype", view[model.subspaces[0]], truth)
                        found |= agreement("attention", view["attention"], truth)
                        yield {"patient": sample.patient, "slide": sample.name, "size": size, "model": name, **found}


def difference(table: pd.DataFrame, column: str) -> str:
    """Distilled minus from scratch over the slides of one magnification, with its 95 % interval over patients."""
    wide = table.pivot(index=["patient", "slide"], columns="model", values=column)
    gains = (wide["distilled"] - wide["student"]).groupby("patient").agg(["sum", "count"]).to_numpy()
    drawn = bootstrap_patients(lambda rows: gains[rows, 0].sum() / gains[rows, 1].sum(), ["all"] * len(gains))
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return f"{drawn[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 where no fold has both students."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kidney_maps", description=__doc__)
    parser.add_argument("cohort", type=Path, help="description of the cohort")
    parser.add_argument("run", type=Path, help="folder of a run of train")
    parser.add_argument("--slides", type=int, default=60, help="slides of a fold at most (default: %(default)s)")
    options = parser.parse_args(arguments)
    finished = [result.parent for result in sorted(options.run.glob(f"fold*/{RESULT}"))]
    folds = [fold for fold in finished if all((fold / f"{name}.json").is_file() for name in MODELS)]
    if not folds:
        print(f"error: {options.run}: must hold a fold with {' and '.join(MODELS)}, got none", file=sys.stderr)
        return 2
    table = pd.DataFrame(compared(read_cohort(options.cohort), folds, options.slides))
    for size, rows in table.groupby("size"):
        measures = rows.columns.drop(["patient", "slide", "size", "model"])
        print(f"{size}, {rows['slide'].nunique()} slides of {rows['patient'].nunique()} patients")
        print(rows.groupby("model")[list(measures)].mean().round(3).to_string())
        for measure in ("Dice", "Dice, best name"):
            print(f"{measure}, distilled minus student: {difference(rows, measure)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
