"""Simulated patients whose genes and slides tell the label with a strength that is known."""

import numpy as np
import pandas as pd
import torch

from disentangled_mil import Bag, Classification
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.data.expression_options import ExpressionOptions
from disentangled_mil.train.building import StageBuilder
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.options import TrainingOptions

# Teachers this weakly penalized learn the labels of their patients by heart, from patches as well.
PENALTIES = {"student": {"mean": 1e-3, "deviation": 1e-3}, "teacher": {"mean": 1e-4, "deviation": 1e-4, "genes": 1e-2}}


def simulated(
    seed: int, *, genes: float, slides: float, spread: float = 0.0, patients: int = 80
) -> tuple[StageBuilder, CohortDataset]:
    """Two classes that genes and slides tell with some strength; the latent score is shared by both.

    Slides tell the score by their mean patch, and by ``spread`` through the standard deviation of a hundred features.
    """
    draw = np.random.default_rng(seed)
    names = [f"P{number}" for number in range(patients)]
    score = draw.normal(size=patients)
    labels = np.where(score + 0.5 * draw.normal(size=patients) > 0, "b", "a")
    expression = draw.normal(size=(patients, 100)) + genes * score[:, None]
    features = draw.normal(size=(patients, 3, 256))
    features[:, :, 5:105] *= np.exp(spread * score)[:, None, None]
    features[:, :, :5] += slides * score[:, None, None]
    samples = tuple(
        Sample(name, name, {"20x": Bag(torch.tensor(rows[None], dtype=torch.float32))})
        for name, rows in zip(names, features, strict=True)
    )
    table = pd.DataFrame(expression, index=names, columns=[f"G{number}" for number in range(100)])
    cohort = Cohort(
        samples,
        pd.DataFrame({"label": labels}, index=names),
        expression=table,
        expression_options=ExpressionOptions(log1p=False, fraction=1.0),
        gene_sets={"tumor": tuple(table.columns[:50]), "tme": tuple(table.columns[50:])},
        tasks={"label": Classification.define(column="label")},
    )
    task, pipeline = cohort.fit_task("label"), cohort.fit_expression()
    builder = StageBuilder(cohort, task, pipeline, TrainingOptions(seed=seed), PENALTIES)
    return builder, CohortDataset(cohort, "label", task, pipeline)
