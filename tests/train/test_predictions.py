import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from disentangled_mil import Classification, DiscreteSurvival
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.predictions import predictions_table

PATIENTS = ["b", "a", "b", "b"]


def test_slides_of_a_patient_are_averaged_in_probability():
    task = Classification(["low", "high"])
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    table = predictions_table(task, task.predictions(logits), PATIENTS)
    assert list(table.columns) == ["patient", "probability_low", "probability_high", "predicted"]
    assert table["patient"].tolist() == ["b", "a"]
    probabilities = logits.softmax(1)
    means = [probabilities[[0, 2, 3]].mean(0), probabilities[1]]
    np.testing.assert_allclose(table[["probability_low", "probability_high"]], torch.stack(means), rtol=1e-6)
    # Most slides of b are high, but one is low so surely that the mean is low.
    assert table["predicted"].tolist() == ["low", "high"]


def test_hazards_and_risk_of_a_patient_are_averaged():
    task = DiscreteSurvival(torch.tensor([1.0, 2.0]))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    table = predictions_table(task, task.predictions(logits), PATIENTS)
    assert list(table.columns) == ["patient", "hazard_0", "hazard_1", "hazard_2", "risk"]
    survival = (1 - logits.sigmoid()).cumprod(1)
    risk = -survival.sum(1)
    np.testing.assert_allclose(table["risk"], [risk[[0, 2, 3]].mean(), risk[1]], rtol=1e-6)
    np.testing.assert_allclose(table["hazard_1"][0], logits[[0, 2, 3], 1].sigmoid().mean(), rtol=1e-6)


def test_metrics_count_patients_not_slides(split, options):
    task = Classification(["G2", "G3", "G4"])
    dataset = CohortDataset(split.tests["internal"], "grading", task)
    logits = torch.randn(len(dataset), 3, generator=torch.Generator().manual_seed(0))
    assert len(dataset) > 10
    metrics = task.metrics(logits, dataset.labels, dataset.patients)
    table = predictions_table(task, task.predictions(logits), dataset.patients)
    truth = split.tests["internal"].clinical["grade"][table["patient"]]
    assert metrics["patients"] == len(table) == 10
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, table["predicted"]))


def test_survival_metrics_use_the_risk(split):
    task = DiscreteSurvival(torch.tensor([500.0]))
    dataset = CohortDataset(split.tests["internal"], "survival", task)
    time = torch.tensor(dataset.labels["time"])
    for logits, c_index in ((-time / 1000, 1.0), (time / 1000, 0.0)):
        metrics = task.metrics(torch.stack([logits, logits], 1), dataset.labels, dataset.patients)
        assert metrics["c_index"] == c_index
