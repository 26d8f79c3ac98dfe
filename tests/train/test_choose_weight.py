"""The weight of the teacher's predictions: no label of a held-out patient reaches the student that predicts it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil import Bag, Classification
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.data.expression_options import ExpressionOptions
from disentangled_mil.train.building import StageBuilder
from disentangled_mil.train.choose_weight import WEIGHTS, choose_weight
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.options import TrainingOptions

# Teachers this weakly penalized learn the labels of their patients by heart, from patches as well.
PENALTIES = {"student": {"mean": 1e-3, "deviation": 1e-3}, "teacher": {"mean": 1e-4, "deviation": 1e-4, "genes": 1e-2}}


def simulated(seed: int, *, genes: float, slides: float, patients: int = 80) -> tuple[StageBuilder, CohortDataset]:
    """Two classes that genes and slides tell with some strength; the latent score is shared by both."""
    draw = np.random.default_rng(seed)
    names = [f"P{number}" for number in range(patients)]
    score = draw.normal(size=patients)
    labels = np.where(score + 0.5 * draw.normal(size=patients) > 0, "b", "a")
    expression = draw.normal(size=(patients, 100)) + genes * score[:, None]
    features = draw.normal(size=(patients, 3, 256))
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


def test_teachers_of_noise_make_no_student_look_better_than_chance(monkeypatch):
    seen = []
    measure = Classification.headline_metric
    monkeypatch.setattr(Classification, "headline_metric", lambda *args: seen.append(measure(*args)) or seen[-1])
    for seed in range(4):
        choose_weight(*simulated(seed, genes=0.0, slides=0.0))
    by_weight = np.array(seen).reshape(4, len(WEIGHTS)).mean(0)
    assert (
        by_weight.max() < 0.58
    )  # 0.75 where teachers have seen the labels of the patients that students are tested on


def test_a_teacher_that_knows_more_than_slides_gets_a_weight():
    chosen = [choose_weight(*simulated(seed, genes=1.0, slides=0.3)) for seed in range(3)]
    assert sum(weight > 0 for weight in chosen) >= 2


def test_the_choice_is_the_same_in_every_run():
    builder, dataset = simulated(5, genes=0.5, slides=0.5)
    assert choose_weight(builder, dataset) == choose_weight(builder, dataset)


@pytest.mark.parametrize("folds", [2, 3])
def test_patients_without_expression_train_students_only(folds):
    builder, dataset = simulated(6, genes=1.0, slides=0.3, patients=40)
    kept = builder.cohort.expression.iloc[:20]
    cohort = replace(builder.cohort, expression=kept)
    builder = replace(builder, cohort=cohort, options=replace(builder.options, teacher_folds=folds))
    dataset = CohortDataset(cohort, "label", builder.task, builder.pipeline)
    assert int(dataset.paired.sum()) == 20
    assert choose_weight(builder, dataset) in WEIGHTS
