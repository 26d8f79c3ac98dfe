"""Cross-fitting: no patient's label reaches the prediction for that patient, parts are stored and used again."""

import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from disentangled_mil.train import Part, cross_fit

# Twelve samples of eight patients: a and b have three slides each.
PATIENTS = list("aaabbbcdefgh")
STRATA = [int(patient in "abcd") for patient in PATIENTS]


class Memorizer:
    """A model that returns the label of each training sample, and the mean label for others."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels, self.parts = labels, []

    def __call__(self, part: Part) -> dict[str, torch.Tensor]:
        self.parts.append(part)
        predictions = self.labels[part.rows].mean(0).expand_as(self.labels).clone()
        predictions[part.rows] = self.labels[part.rows]
        return {"prediction": predictions}


def fit(teach, **options):
    return cross_fit(teach, PATIENTS, STRATA, folds=2, quiet=True, **options)


@settings(max_examples=25)
@given(row=st.integers(0, 11), repeats=st.integers(1, 3), folds=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
def test_a_label_never_reaches_the_prediction_of_its_own_patient(row, repeats, folds, seed):
    labels = torch.arange(12.0)
    changed = labels.clone()
    same = torch.tensor([patient == PATIENTS[row] for patient in PATIENTS])
    changed[same] += 1000
    before, after = (
        cross_fit(Memorizer(of), PATIENTS, STRATA, folds=folds, repeats=repeats, seed=seed, quiet=True)["prediction"]
        for of in (labels, changed)
    )
    assert torch.equal(before[same], after[same])
    assert (before[~same] <= after[~same]).all()
    assert (before[~same] < after[~same]).any()


def test_samples_of_a_patient_stay_together_and_each_fold_has_each_stratum():
    model = Memorizer(torch.arange(12.0))
    fit(model, repeats=3)
    assert [part.name for part in model.parts] == [f"repeat{r}-fold{f}" for r in range(3) for f in range(2)]
    assert len({part.seed for part in model.parts}) == 6
    for part in model.parts:
        taught = {PATIENTS[row] for row in part.rows}
        assert [row for row in range(12) if PATIENTS[row] in taught] == part.rows.tolist()
        assert len(taught & set("abcd")) == len(taught & set("efgh")) == 2
    first, second, third = ({frozenset(part.rows.tolist()) for part in model.parts[i : i + 2]} for i in (0, 2, 4))
    assert not first == second == third


def test_predictions_of_repeats_are_averaged():
    model = Memorizer(torch.arange(12.0))
    found = fit(model, repeats=3)["prediction"]
    for row in range(12):
        means = [model.labels[part.rows].mean() for part in model.parts if row not in part.rows]
        assert len(means) == 3
        assert found[row] == pytest.approx(float(sum(means) / 3))


def test_samples_that_are_not_present_neither_teach_nor_get_a_prediction():
    present = torch.tensor([True, False] * 6)
    model = Memorizer(torch.arange(1.0, 13.0))
    model.labels[~present] = torch.nan
    found = fit(model, present=present)["prediction"]
    assert all(present[part.rows].all() for part in model.parts)
    assert (found[~present] == 0).all()
    assert (found[present] > 0).all()


def test_every_prediction_keeps_its_shape():
    def teach(part):
        return {"logits": torch.ones(12, 4), "shares": torch.ones(12, 2, 4, dtype=torch.float64)}

    found = fit(teach)
    assert {name: (values.shape, values.dtype) for name, values in found.items()} == {
        "logits": ((12, 4), torch.float32),
        "shares": ((12, 2, 4), torch.float32),
    }


def test_an_interrupted_cross_fitting_continues_after_its_last_part(tmp_path):
    whole = fit(Memorizer(torch.arange(12.0)), repeats=2)["prediction"]
    model = Memorizer(torch.arange(12.0))

    def interrupted(part):
        if len(model.parts) == 3:
            raise KeyboardInterrupt
        return model(part)

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, repeats=2, store=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "repeat0-fold0.safetensors",
        "repeat0-fold1.safetensors",
        "repeat1-fold0.safetensors",
    ]
    again = Memorizer(torch.arange(12.0))
    assert torch.equal(fit(again, repeats=2, store=tmp_path)["prediction"], whole)
    assert [part.name for part in again.parts] == ["repeat1-fold1"]


def test_a_killed_cross_fitting_leaves_whole_parts_and_continues_with_the_same_bits(tmp_path, capsys):
    program = textwrap.dedent(
        """
        import os, signal, sys
        from typing import Any
        import torch
        from disentangled_mil.train import cross_fit

        def teach(part):
            if part.name == "repeat0-fold2" and kill:
                os.kill(os.getpid(), signal.SIGKILL)
            generator = torch.Generator().manual_seed(part.seed)
            return {"logits": torch.randn(12, 3, generator=generator) + part.rows.sum()}

        found = cross_fit(teach, list("aaabbbcdefgh"), [0] * 12, folds=4, store=store)
        """
    )
    given = f"from pathlib import Path; store, kill = Path({str(tmp_path)!r}), True"
    killed = subprocess.run([sys.executable, "-c", f"{given}\n{program}"], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"repeat0-fold0.safetensors", "repeat0-fold1.safetensors"}
    resumed: dict[str, Any] = {"store": tmp_path, "kill": False}
    exec(program, resumed)
    lines = ["cross-fitting, repeat0-fold0 (1 of 4), stored", "cross-fitting, repeat0-fold1 (2 of 4), stored"]
    assert capsys.readouterr().err.splitlines()[:2] == lines
    whole: dict[str, Any] = {"store": None, "kill": False}
    exec(program, whole)
    assert torch.equal(resumed["found"]["logits"], whole["found"]["logits"])


def test_more_repeats_use_the_parts_of_fewer(tmp_path):
    fit(Memorizer(torch.arange(12.0)), store=tmp_path)
    model = Memorizer(torch.arange(12.0))
    found = fit(model, store=tmp_path, repeats=2)["prediction"]
    assert [part.name for part in model.parts] == ["repeat1-fold0", "repeat1-fold1"]
    assert torch.equal(found, fit(Memorizer(torch.arange(12.0)), repeats=2)["prediction"])


@pytest.mark.parametrize("changes", [{"seed": 1}, {"key": "other"}, {"present": torch.arange(12) > 0}])
def test_parts_of_another_cross_fitting_are_refused_unless_they_are_replaced(tmp_path, changes):
    fit(Memorizer(torch.arange(12.0)), store=tmp_path, key="data")
    model = Memorizer(torch.arange(12.0))
    options = {"key": "data", **changes}
    with pytest.raises(ValueError, match=r"repeat0-fold0\.safetensors: must hold a part of the same cross-fitting"):
        fit(model, store=tmp_path, **options)
    assert not model.parts
    replaced = fit(model, store=tmp_path, resume=False, **options)
    assert torch.equal(fit(model, store=tmp_path, **options)["prediction"], replaced["prediction"])
    assert len(model.parts) == 2


def test_a_damaged_part_is_named(tmp_path):
    fit(Memorizer(torch.arange(12.0)), store=tmp_path)
    path = tmp_path / "repeat0-fold1.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"^{path}: cannot be resumed from; delete it to train this part anew"):
        fit(Memorizer(torch.arange(12.0)), store=tmp_path)


def test_a_part_holds_the_predictions_of_its_held_out_samples_only(tmp_path):
    model = Memorizer(torch.arange(12.0))
    fit(model, store=tmp_path)
    for part in model.parts:
        assert len(load_file(tmp_path / f"{part.name}.safetensors")["prediction"]) == 12 - len(part.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strata": [0]}, r"strata must have one entry per sample = 12, got 1"),
        ({"strata": [0, 1] * 6}, r"strata must be one per patient, got 0 and 1 for 'a'"),
        ({"folds": 5}, r"every label must have at least 5 patients .*, got 4 with '1'"),
        ({"folds": 1}, r"folds must be at least 2, got 1"),
        ({"repeats": 0}, r"repeats must be at least 1, got 0"),
        ({"present": torch.ones(3, dtype=torch.bool)}, r"present must have shape \[n\] = \[12\], got \[3\]"),
        ({"teach": lambda part: {}}, r"teach must return predictions by name, got {}"),
        (
            {"teach": lambda part: {"logits": torch.ones(5, 2)}},
            r"teach must return predictions of all n = 12 samples, got \[5, 2\] for 'logits'",
        ),
        (
            {"teach": lambda part: {"logits": torch.full((12,), torch.nan)}},
            r"teach must return finite predictions, got others for 'logits'",
        ),
        (
            {"teach": lambda part: {part.name: torch.ones(12)}},
            r"teach must return the same names in every part, got \['repeat0-fold0'\] and \['repeat0-fold1'\]",
        ),
    ],
)
def test_what_cannot_be_cross_fitted_is_refused(changes, message):
    given = {"teach": Memorizer(torch.arange(12.0)), "patients": PATIENTS, "strata": STRATA, "folds": 2, **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        cross_fit(**given, quiet=True)
