"""The linear model of a split: agreement with scikit-learn and least squares, penalties, mixed losses."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from disentangled_mil import Bag, Classification, DistillationTargets
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.linear import (
    BOTH,
    SLIDES,
    choose_penalties,
    distilled_loss,
    fit_linear,
    task_loss_of,
    vectors_of,
)
from tests.train.test_a_new_kind import Quantity

EVERYONE = torch.arange(80)


@pytest.fixture(autouse=True)
def brief() -> None:
    """Nothing is shortened here: all penalties are tried, on all folds."""


@pytest.fixture
def features(generator):
    return torch.randn(80, 6, generator=generator) * torch.tensor([1.0, 2.0, 5.0, 0.1, 1.0, 0.0]) + 3


def standardized(features) -> np.ndarray:
    values = features.double().numpy()
    std = values.std(0)
    return (values - values.mean(0)) / np.where(std > 0, std, 1) / np.sqrt(values.shape[1])


def loss_of(task, target):
    return lambda logits, rows: task.loss(logits, target[rows])


def told_by(*, mean: float, spread: float) -> CohortDataset:
    """80 patients of two classes, which 5 features tell by their mean, and 100 others by their standard deviation."""
    draw = np.random.default_rng(0)
    names = [f"P{number}" for number in EVERYONE.tolist()]
    score = draw.normal(size=len(names))
    labels = np.where(score + 0.5 * draw.normal(size=len(names)) > 0, "b", "a")
    features = draw.normal(size=(len(names), 3, 256))
    features[:, :, :5] += mean * score[:, None, None]
    features[:, :, 5:105] *= np.exp(spread * score)[:, None, None]
    bags = [Bag(torch.tensor(rows[None], dtype=torch.float32)) for rows in features]
    samples = tuple(Sample(name, name, {"20x": bag}) for name, bag in zip(names, bags, strict=True))
    clinical, tasks = pd.DataFrame({"label": labels}, index=names), {"label": Classification.define(column="label")}
    cohort = Cohort(samples, clinical, tasks=tasks)
    return CohortDataset(cohort, "label", cohort.fit_task("label"), None)


def test_vectors_are_the_statistics_of_patches_at_all_magnifications_and_genes(dataset):
    found = vectors_of(dataset, BOTH)
    bags = dataset.samples[3].load()
    torch.testing.assert_close(found["mean_10x"][3], bags["10x"].patches[0].float().mean(0))
    torch.testing.assert_close(found["deviation_20x"][3], bags["20x"].patches[0].float().std(0))
    assert {name for name in found if name.startswith("genes_")} == {f"genes_{name}" for name in dataset.genes}
    assert not any(name.startswith("genes_") for name in vectors_of(dataset, SLIDES))


def test_classes_are_fitted_as_by_ridge_logistic_regression(features):
    target = (features[:, 0] - 3 + torch.randn(80, generator=torch.Generator().manual_seed(1)) > 0).long()
    loss = loss_of(Classification(["a", "b"]), target)
    model = fit_linear({"mean": features}, EVERYONE, loss, 2, {"mean": 0.05})
    # Two logits with half the weight each have half the penalty of one.
    other = LogisticRegression(C=1 / (80 * 0.05), tol=1e-10, max_iter=1000).fit(standardized(features), target)
    difference = model({"mean": features}).diff(dim=1)[:, 0]
    np.testing.assert_allclose(difference, other.decision_function(standardized(features)), atol=1e-3)


def test_numbers_are_fitted_as_by_ridge_regression_with_a_penalty_for_each_vector(features):
    target = features @ torch.tensor([1.0, -0.5, 0.1, 0.0, 0.0, 0.0])
    vectors = {"mean_20x": features[:, :2], "genes_tumor": features[:, 2:]}
    penalties = {"mean": 0.05, "genes": 0.2}
    model = fit_linear(vectors, EVERYONE, loss_of(Quantity(0.0, 1.0), target), 1, penalties)
    inputs = np.hstack([standardized(vectors["mean_20x"]), standardized(vectors["genes_tumor"]) / 2])
    other = Ridge(alpha=80 * 0.05).fit(inputs, target)
    np.testing.assert_allclose(model(vectors)[:, 0], other.predict(inputs), atol=1e-3)


def test_an_infinite_penalty_leaves_vectors_out(features):
    vectors = {"mean_20x": features, "genes_tumor": features.flip(0)}
    target = (features[:, 0] > 3).long()
    loss = loss_of(Classification(["a", "b"]), target)
    both = fit_linear(vectors, EVERYONE, loss, 2, {"mean": 0.01, "genes": math.inf})
    alone = fit_linear({"mean_20x": features}, EVERYONE, loss, 2, {"mean": 0.01})
    torch.testing.assert_close(both(vectors), alone({"mean_20x": features}))


def test_only_the_given_samples_are_fitted(features):
    target = (features[:, 0] > 3).long()
    loss, rows = loss_of(Classification(["a", "b"]), target), EVERYONE[::2]
    model = fit_linear({"mean": features}, rows, loss, 2, {"mean": 0.01})
    changed = features.clone()
    changed[1::2] = 1e6
    again = fit_linear({"mean": changed}, rows, loss, 2, {"mean": 0.01})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_features_without_any_variance_give_one_prediction():
    loss = loss_of(Classification(["a", "b"]), torch.tensor([0, 0, 0, 0, 1, 1]))
    model = fit_linear({"mean": torch.ones(6, 3)}, torch.arange(6), loss, 2, {"mean": 0.05})
    torch.testing.assert_close(model({"mean": torch.zeros(1, 3)}).softmax(1), torch.tensor([[2 / 3, 1 / 3]]))


def test_rounding_of_a_constant_feature_is_not_amplified(generator):
    target = torch.randint(2, (80,), generator=generator)
    constant = 0.1 + 1e-8 * torch.randn(80, 1, generator=generator)
    loss = loss_of(Classification(["a", "b"]), target)
    model = fit_linear({"mean": constant}, EVERYONE, loss, 2, {"mean": 1e-4})
    assert not model.weights["mean"].any()


def test_a_missing_bag_is_predicted_from_the_rest(features):
    loss = loss_of(Classification(["a", "b"]), (features[:, 0] > 3).long())
    missing = features.clone()
    missing[5] = torch.nan
    model = fit_linear({"mean": missing}, EVERYONE, loss, 2, {"mean": 0.05})
    assert model({"mean": missing}).isfinite().all()


def test_penalties_are_chosen_by_patients_that_the_model_has_not_seen(dataset):
    task = Classification(["a", "b", "c"])
    chosen = choose_penalties(dataset, task, BOTH, seed=0)
    assert set(chosen) == {"mean", "deviation", "genes"}
    assert choose_penalties(dataset, task, BOTH, seed=0) == chosen


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_standard_deviations_are_left_out_unless_they_tell_the_label(spread):
    samples = told_by(mean=0.5, spread=spread)
    chosen = choose_penalties(samples, Classification(["a", "b"]), SLIDES, seed=0)
    assert chosen["deviation"] == (chosen["mean"] if spread else math.inf)


def test_mixed_loss_is_the_mean_of_both_and_skips_patients_without_a_teacher(dataset):
    task = Classification(["a", "b", "c"])
    loss, rows = task_loss_of(dataset, task), torch.arange(len(dataset))
    targets = DistillationTargets(torch.zeros(len(dataset), 3), torch.zeros(len(dataset), dtype=torch.bool))
    logits = torch.randn(len(dataset), 3)
    mixed = distilled_loss(loss, targets, task, 3.0, 2.0)
    torch.testing.assert_close(mixed(logits, rows), loss(logits, rows) / 4)
