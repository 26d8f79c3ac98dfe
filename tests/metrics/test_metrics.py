import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sksurv.metrics import concordance_index_censored

from disentangled_mil.metrics import classification_metrics, survival_metrics
from tests.support.golden import load_golden

COUNTS = ["concordant", "discordant", "tied_risk", "tied_time"]


def each(n: int) -> list[str]:
    """Every slide is a patient of its own."""
    return [f"patient {i}" for i in range(n)]


def test_reference_concordance_index_and_pair_counts_are_reproduced():
    case = load_golden("concordance_index")
    metrics = survival_metrics(case["risk"], case["time"], event=case["event"], patients=each(60))
    assert metrics["c_index"] == pytest.approx(case["cindex"].item(), abs=1e-12)
    assert {name: metrics[name] for name in COUNTS} == {name: case[name].item() for name in COUNTS}
    assert metrics["comparable_pairs"] == 916 + 254 + 1


@settings(max_examples=50)
@given(n=st.integers(2, 25), levels=st.integers(1, 12), events=st.floats(0.1, 1), seed=st.integers(0, 10**6))
def test_concordance_equals_scikit_survival_with_ties_and_turns_round_with_the_sign(n, levels, events, seed):
    random = np.random.default_rng(seed)
    time, risk = random.integers(levels, size=n).astype(float), random.integers(levels, size=n).astype(float)
    event = random.random(n) < events
    metrics = survival_metrics(risk, time, event=event, patients=each(n))
    if not metrics["comparable_pairs"]:
        assert math.isnan(metrics["c_index"])
        return
    c_index, *counts = concordance_index_censored(event, time, risk)
    assert metrics["c_index"] == pytest.approx(c_index)
    assert [metrics[name] for name in COUNTS] == counts
    turned = survival_metrics(-risk, time, event=event, patients=each(n))
    assert turned["c_index"] == pytest.approx(1 - c_index)
    order = random.permutation(n)
    shuffled = survival_metrics(risk[order], time[order], event=event[order], patients=each(n))
    assert shuffled == metrics


@pytest.mark.parametrize(
    "turn",
    [
        np.array,
        torch.tensor,
        pd.Series,
        iter,
        lambda rows: dict(enumerate(rows)).values(),
        lambda rows: list(map(torch.tensor, rows)),
        lambda rows: [("hospital", row) for row in rows],
    ],
)
def test_patients_come_as_arrays_tensors_and_any_iterable(turn):
    rows, expected = [7, 3, 7, 9], survival_metrics([9, 3, -5, 1], [1, 2, 1, 3], event=[1] * 4, patients=[*"abac"])
    assert survival_metrics([9, 3, -5, 1], [1, 2, 1, 3], event=[1] * 4, patients=turn(rows)) == expected
    assert classification_metrics([[0.6, 0.4]] * 4, [0, 1, 0, 1], turn(rows))["patients"] == 3


@pytest.mark.parametrize(
    "missing", [[None, "a"], np.array([math.nan, 1.0]), torch.tensor([math.nan, 1.0]), [pd.NA, "a"], [pd.NaT, "a"]]
)
def test_a_missing_patient_is_refused(missing):
    with pytest.raises(ValueError, match=r"patients must name the patient of every slide, got (None|nan|<NA>|NaT) at"):
        classification_metrics([[0.6, 0.4]] * 2, [0, 1], missing)
    with pytest.raises(ValueError, match=r"patients must name .* at position 0"):
        survival_metrics([1, 2], [1, 2], event=[1, 1], patients=missing)


@pytest.mark.parametrize("patients", [np.zeros((2, 1)), torch.zeros(2, 1), [["a"], ["b"]]])
def test_patients_in_columns_are_refused(patients):
    with pytest.raises(ValueError, match=r"patients must have shape \[n\], got \[2, 1\]"):
        classification_metrics([[0.6, 0.4]] * 2, [0, 1], patients)


def test_equal_scores_stay_ties_whatever_the_number_and_order_of_slides():
    for time in ([1, 1, 1, 2], [2, 2, 2, 1]):
        assert survival_metrics([0.1] * 4, time, event=[1] * 4, patients=list("aaab"))["c_index"] == 0.5
    assert classification_metrics([[0.9, 0.1]] * 4, [1, 1, 1, 0], list("aaab"))["auc"] == 0.5
    risks, time = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1], [1, 1, 1, 2, 2, 2]
    assert survival_metrics(risks, time, event=[1] * 6, patients=list("aaabbb"))["c_index"] == 0.5


def test_slides_of_a_patient_are_averaged_before_patients_are_ranked():
    patients = ["a", "b", "a", "c"]
    metrics = survival_metrics([9, 3, -5, 1], [1, 2, 1, 3], event=[1, 1, 1, 0], patients=patients)
    assert (metrics["patients"], metrics["events"], metrics["comparable_pairs"]) == (3, 2, 3)
    assert (metrics["concordant"], metrics["discordant"]) == (2, 1)
    assert metrics["c_index"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("time", "event"), [([1, 2], [0, 0]), ([1, 2], [0, 1]), ([1, 1], [1, 1]), ([1], [1])])
def test_no_comparable_pair_is_a_defined_result(time, event):
    metrics = survival_metrics(np.arange(len(time)), time, event=event, patients=each(len(time)))
    assert math.isnan(metrics["c_index"])
    assert metrics["comparable_pairs"] == 0


def test_classification_equals_hand_computed_values():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.1, 0.2, 0.7]])
    metrics = classification_metrics(probabilities, torch.tensor([0, 0, 1, 2, 2]), each(5))
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["sensitivity"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert metrics["specificity"] == pytest.approx((3 / 3 + 2 / 4 + 3 / 3) / 3)
    assert metrics["f1"] == pytest.approx((2 / 3 + 2 / 4 + 2 / 3) / 3)
    assert metrics["auc"] == pytest.approx(1.0)
    assert (metrics["classes"], metrics["patients"]) == (3, 5)


@settings(max_examples=30)
@given(n=st.integers(2, 20), classes=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_auc_is_the_share_of_pairs_ranked_right_over_the_classes_present(n, classes, seed):
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.ones(classes), size=n).round(1)
    labels = random.integers(classes, size=n)
    metrics = classification_metrics(scores, labels, each(n))
    shares = []
    for k in np.unique(labels):
        positive, negative = scores[labels == k, k], scores[labels != k, k]
        difference = positive[:, None] - negative
        shares.append(((difference > 0) + 0.5 * (difference == 0)).mean() if difference.size else np.nan)
    np.testing.assert_allclose(metrics["auc"], np.mean(shares))
    order = random.permutation(n)
    shuffled = classification_metrics(scores[order], labels[order], each(n))
    np.testing.assert_allclose(list(shuffled.values()), list(metrics.values()))
    defined = [value for name, value in metrics.items() if name not in ("classes", "patients")]
    assert all(np.isnan(value) or 0 <= value <= 1 for value in defined)


def test_a_class_that_no_patient_has_takes_no_part():
    with_it = classification_metrics([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]], [0, 1, 1], each(3))
    without = classification_metrics([[0.6, 0.3], [0.3, 0.5], [0.5, 0.2]], [0, 1, 1], each(3))
    assert with_it == without


def test_predicting_a_class_that_no_patient_has_is_a_miss_but_no_false_alarm_for_the_others():
    metrics = classification_metrics([[0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], [0, 1, 0], each(3))
    assert metrics["sensitivity"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["specificity"] == 1
    assert metrics["f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_patients_of_one_class_leave_auc_and_specificity_undefined():
    metrics = classification_metrics([[0.6, 0.4], [0.3, 0.7]], [0, 0], each(2))
    assert math.isnan(metrics["auc"])
    assert math.isnan(metrics["specificity"])
    assert metrics["classes"] == 1
    assert (metrics["accuracy"], metrics["sensitivity"]) == (0.5, 0.5)


def test_probabilities_of_a_patients_slides_are_averaged():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
    metrics = classification_metrics(probabilities, [0, 1, 0], ["a", "b", "a"])
    assert (metrics["accuracy"], metrics["patients"]) == (1.0, 2)


@pytest.mark.parametrize(
    ("probabilities", "labels", "patients", "message"),
    [
        ([0.5], [0], ["a"], r"probabilities must have shape \[n, K\] with n >= 1, got \[1\]"),
        (np.zeros((0, 2)), [], [], r"probabilities must have shape \[n, K\] with n >= 1, got \[0, 2\]"),
        ([[0.5, 0.5]], [0, 1], ["a"], r"labels must have shape \[n\] with n = 1, got \[2\]"),
        ([[0.5, math.nan]], [0], ["a"], r"probabilities must be finite, got nan"),
        ([[0.5, 0.5]], [2], ["a"], r"labels must be class indices from 0 to 1, got 2"),
        ([[0.5, 0.5]], [0.5], ["a"], r"labels must be class indices from 0 to 1, got 0\.5"),
        ([[0.5, 0.5]], [0], ["a", "b"], r"patients must have one entry for each of the 1 slides, got 2"),
        ([[0.5, 0.5]] * 2, [0, 1], ["a", "a"], r"labels must be one value per patient, got 0 and 1 for 'a'"),
    ],
)
def test_classification_errors_name_the_argument(probabilities, labels, patients, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels, patients)


@pytest.mark.parametrize(
    ("risk", "time", "event", "message"),
    [
        ([[1.0], [2.0]], [1, 2], [1, 1], r"risk must have shape \[n\] with n >= 1, got \[2, 1\]"),
        ([1.0, 2.0], [1], [1, 1], r"time must have shape \[n\] with n = 2, got \[1\]"),
        ([1.0, 2.0], [1, 1], [1], r"event must have shape \[n\] with n = 2, got \[1\]"),
        ([1.0, math.inf], [1, 1], [1, 1], r"risk must be finite, got inf"),
        ([1.0, 2.0], [1, 1], ["dead", "alive"], r"event must hold numbers: .*'dead'"),
        ([1.0, 2.0], [1, 1], [1, 3], r"event must be 0 \(censored\) or 1 \(event observed\), got 3"),
        ([1.0, 2.0], [1, 2], [1, 1], r"time must be one value per patient, got 1 and 2 for 'a'"),
        ([1.0, 2.0], [1, 1], [1, 0], r"event must be one value per patient, got 1 and 0 for 'a'"),
    ],
)
def test_survival_errors_name_the_argument(risk, time, event, message):
    with pytest.raises(ValueError, match=message):
        survival_metrics(risk, time, event=event, patients=["a", "a"])
