"""The weight of the teacher's predictions: no label of a held-out patient reaches the student that predicts it."""

from dataclasses import replace

import numpy as np
import pytest

from disentangled_mil import Classification
from disentangled_mil.train.choose_weight import WEIGHTS, choose_weight
from disentangled_mil.train.datasets import CohortDataset
from tests.support.simulated import simulated


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
