"""A kind of task that the package does not know, from the description of a cohort to the predictions for new slides.

Everything that is particular to it stands in one class.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.tasks import KINDS, Column, Labels, Target, Task, task_from_state
from disentangled_mil.train.cross_validation import run_cross_validation
from disentangled_mil.train.predict import predict_slides
from tests.support.cohorts import replace_text, small_planted
from tests.support.training import OPTIONS

OUT_OF_FOLD = replace(OPTIONS, distillation_targets="out_of_fold", share_weight=0.5, calibrate=True)


class Quantity(Task):
    """A number, predicted by least squares in units of its standard deviation."""

    kind: ClassVar[str] = "quantity"
    link: ClassVar[str] = "identity"
    columns: ClassVar[tuple[Column, ...]] = (Column("column", "value"),)
    options: ClassVar[Mapping[str, Any]] = {"strata": 2}
    headline: ClassVar[Mapping[str, str]] = {"rmse": "RMSE", "correlation": "r"}
    errors: ClassVar[frozenset[str]] = frozenset({"rmse"})
    undefined: ClassVar[str] = "nan: a test set holds a single value"

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def read(cls, key: str, value: Any, options: Mapping[str, Any]) -> float:
        return float(value)

    @classmethod
    def strata(cls, labels: Labels) -> list[Hashable]:
        return [value > np.median(labels["value"]) for value in labels["value"]]

    @classmethod
    def summary(cls, labels: Labels) -> str:
        return f"mean {np.mean(labels['value']):.1f}"

    @classmethod
    def fit_labels(cls, labels: Labels, options: Mapping[str, Any]) -> "Quantity":
        return cls(float(np.mean(labels["value"])), float(np.std(labels["value"])))

    @property
    def outputs(self) -> int:
        return 1

    def target_of_labels(self, labels: Labels) -> Tensor:
        return torch.tensor([(value - self.mean) / self.std for value in labels["value"]])

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        return (logits[:, 0] - target).square().mean()

    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        return {name: (logits[:, 0] - target).square().neg().exp().sum() for name, logits in subspace_logits.items()}

    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        return {"predicted": logits[:, 0] * self.std + self.mean}

    def metrics(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> dict[str, float]:
        columns = {"predicted": self.predictions(logits)["predicted"].numpy(), "value": labels["value"]}
        table = pd.DataFrame(columns).groupby(list(patients)).mean()
        rmse = ((table["predicted"] - table["value"]) ** 2).mean() ** 0.5
        return {"rmse": rmse, "correlation": table.corr().iat[0, 1], "patients": len(table)}

    def to(self, device: torch.device | str) -> "Quantity":
        return self

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Quantity":
        return cls(state["mean"], state["std"])


WITH_QUANTITY = {**KINDS, "quantity": Quantity}


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    path = write_cohort(small_planted(), tmp_path_factory.mktemp("cohort"))
    table = pd.read_csv(path.parent / "clinical.csv", dtype=str)
    table.assign(age=["#N/A", *(40 + np.arange(33) % 7)]).to_csv(path.parent / "clinical.csv", index=False)
    replace_text(path, "[slides.10x]", '[tasks.age]\nkind = "quantity"\ncolumn = "age"\n\n[slides.10x]')
    return path


def test_a_new_kind_goes_from_the_description_to_the_predictions(description, tmp_path, capsys):
    out = tmp_path / "run"
    printed = run_cross_validation(description, "age", out, OUT_OF_FOLD, folds=2, kinds=WITH_QUANTITY)
    assert "test RMSE" in printed
    assert "distilled student minus student" in printed
    assert printed.count("teacher RMSE") == 1
    assert "age: 33 patients (mean 42.8), 33 of them" in capsys.readouterr().err
    table = pd.read_csv(out / "predictions.csv")
    assert list(table.columns) == ["fold", "model", "test", "patient", "predicted", "value"]
    labels = read_cohort(description, kinds=WITH_QUANTITY).labels("age")["value"]
    assert set(table["patient"]) == set(labels.index)
    assert table["value"].tolist() == labels[table["patient"]].tolist()

    state = json.loads((out / "fold0" / "student.json").read_text())["task"]
    assert isinstance(task_from_state(state, WITH_QUANTITY), Quantity)
    slides = {name: description.parent / "slides" / name for name in ("10x", "20x")}
    predicted = predict_slides(out / "fold0" / "student", slides, tmp_path / "new.csv", kinds=WITH_QUANTITY)
    assert list(predicted.columns) == ["patient", "predicted"]
    assert predicted["predicted"].between(30, 60).all()


def test_without_its_class_the_kind_is_refused(description):
    with pytest.raises(
        ValueError, match=r"\[tasks\.age\] kind must be one of 'classification', 'survival', got 'quantity'"
    ):
        read_cohort(description)
