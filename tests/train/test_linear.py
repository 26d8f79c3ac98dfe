"""The linear floor: features, and agreement with scikit-learn and with least squares."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from disentangled_mil import Classification
from disentangled_mil.train.linear import fit_linear, mean_features
from tests.train.test_a_new_kind import Quantity


@pytest.fixture
def features(generator):
    return torch.randn(80, 6, generator=generator) * torch.tensor([1.0, 2.0, 5.0, 0.1, 1.0, 0.0]) + 3


def standardized(features) -> np.ndarray:
    values = features.double().numpy()
    std = values.std(0)
    values = (values - values.mean(0)) / np.where(std > 0, std, 1)
    return values / np.linalg.svd(values, compute_uv=False)[0] * np.sqrt(len(values) - 1)


def test_features_are_the_mean_patches_of_all_magnifications_side_by_side(dataset):
    found = mean_features(dataset)
    assert found.shape == (len(dataset), 16)
    bags = dataset.samples[3].load()
    wanted = torch.cat([bags[name].patches[0].mean(0) for name in ("10x", "20x")])
    torch.testing.assert_close(found[3].float(), wanted)


def test_classes_are_fitted_as_by_ridge_logistic_regression(features):
    target = (features[:, 0] - 3 + torch.randn(80, generator=torch.Generator().manual_seed(1)) > 0).long()
    model = fit_linear(features, target, Classification(["a", "b"]), penalty=0.1)
    inputs = standardized(features)
    # Two logits with half the weight each have half the penalty of one.
    other = LogisticRegression(C=1 / (80 * 0.05), tol=1e-10, max_iter=1000).fit(inputs, target)
    difference = model(features).diff(dim=1)[:, 0]
    np.testing.assert_allclose(difference, other.decision_function(inputs), atol=1e-3)


def test_numbers_are_fitted_as_by_ridge_regression(features):
    target = features @ torch.tensor([1.0, -0.5, 0.1, 0.0, 0.0, 0.0])
    model = fit_linear(features, target, Quantity(0.0, 1.0), penalty=0.1)
    inputs = standardized(features)
    other = Ridge(alpha=80 * 0.05).fit(inputs, target)
    np.testing.assert_allclose(model(features)[:, 0], other.predict(inputs), atol=1e-3)


def test_features_without_any_variance_give_one_prediction():
    model = fit_linear(torch.ones(6, 3), torch.tensor([0, 0, 0, 0, 1, 1]), Classification(["a", "b"]))
    torch.testing.assert_close(model(torch.zeros(1, 3)).softmax(1), torch.tensor([[2 / 3, 1 / 3]]))
