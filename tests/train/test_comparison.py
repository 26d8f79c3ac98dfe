"""Comparison of models on the same patients: means of splits, draws by patient, directions."""

import numpy as np
import pytest
import torch

from disentangled_mil import Classification
from disentangled_mil.train.comparison import Evaluation, compare, gain, headline_draws
from tests.train.test_a_new_kind import Quantity

LABELS = ["a", "b"] * 10
TASK = Classification(["a", "b"])


def evaluation(generator, **signal) -> Evaluation:
    """Twenty patients; the signal of a model is how far its logits tell the classes apart."""
    truth = torch.tensor([[1.0, -1.0] if label == "a" else [-1.0, 1.0] for label in LABELS])
    noise = torch.randn(20, 2, generator=generator)
    logits = {model: strength * truth + noise for model, strength in signal.items()}
    return Evaluation(TASK, {"label": LABELS}, [f"P{i}" for i in range(20)], logits)


def test_the_first_value_is_the_metric_of_all_patients_and_every_draw_has_both_classes(generator):
    one = evaluation(generator, student=0.5)
    draws = headline_draws(TASK, one.logits["student"], one.labels, one.patients, resamples=50)
    metrics = TASK.metrics(one.logits["student"], one.labels, one.patients)
    assert draws[0] == pytest.approx(metrics["auc"])
    assert np.isfinite(draws).all()
    assert draws[1:].std() > 0


def test_a_patient_is_drawn_with_all_samples(generator):
    """Slides that are doubled change nothing."""
    one = evaluation(generator, student=0.5)
    twice = [row for row in range(20) for _ in range(2)]
    doubled = {"label": [LABELS[row] for row in twice]}
    draws = [
        headline_draws(TASK, one.logits["student"], one.labels, one.patients, resamples=20),
        headline_draws(TASK, one.logits["student"][twice], doubled, [one.patients[row] for row in twice], resamples=20),
    ]
    np.testing.assert_allclose(*draws)


def test_gains_are_differences_of_the_means_of_splits(generator):
    of_models = {"linear": 0.1, "genes": 1.0, "teacher": 2.0, "student": 0.2, "distilled": 0.5}
    splits = [{"test": evaluation(generator, **of_models)} for _ in range(3)]
    found = compare(splits, resamples=200)["test"]
    auc = {
        model: np.mean([TASK.metrics(s["test"].logits[model], {"label": LABELS}, range(20))["auc"] for s in splits])
        for model in splits[0]["test"].logits
    }
    gains = {(one["first"], one["second"]): one for one in found["gains"]}
    assert list(gains) == [
        ("distilled", "student"),
        ("teacher", "student"),
        ("student", "linear"),
        ("teacher", "genes"),
    ]
    for (first, second), one in gains.items():
        assert one["difference"] == pytest.approx(auc[first] - auc[second])
        assert one["low"] <= one["difference"] <= one["high"]
        assert one["splits"] == 3
    for model, one in found["models"].items():
        assert one["value"] == pytest.approx(auc[model])
        assert one["low"] <= one["value"] <= one["high"]
    assert list(found["models"]) == list(auc)
    taken = (auc["distilled"] - auc["student"]) / (auc["teacher"] - auc["student"])
    assert found["headroom_taken"] == pytest.approx(taken)
    assert found["metric"] == "auc"


def test_a_pair_is_compared_on_the_splits_that_have_both(generator):
    with_it = {"test": evaluation(generator, teacher=2.0, student=0.2, distilled=0.5)}
    declined = {"test": evaluation(generator, teacher=0.5, student=0.6)}
    found, alone = compare([declined, with_it], resamples=20)["test"], compare([with_it], resamples=20)["test"]
    assert [one["splits"] for one in found["gains"]] == [1, 2]
    assert found["gains"][0]["difference"] == alone["gains"][0]["difference"]
    assert found["headroom_taken"] == alone["headroom_taken"]
    assert compare([declined], resamples=20)["test"]["headroom_taken"] is None


def test_no_share_is_taken_of_a_headroom_that_is_not_there(generator):
    split = {"test": evaluation(generator, teacher=0.0, student=3.0, distilled=3.1)}
    assert compare([split], resamples=20)["test"]["headroom_taken"] is None


def test_less_of_an_error_is_a_gain():
    worse, better = [3.0, 3.1, 2.9], [2.0, 2.1, 1.8]
    assert gain(Quantity(0.0, 1.0), better, worse) == pytest.approx((1.0, 1.0, 1.1), abs=0.01)
    assert gain(TASK, worse, better).difference == 1.0
