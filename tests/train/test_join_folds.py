"""Folds of one run in several jobs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil.cli import main
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.tasks import KINDS, Classification, DiscreteSurvival
from disentangled_mil.train import cross_validation, join_folds, run_cross_validation, run_folder, run_note
from disentangled_mil.train.comparison import Evaluation, compare
from disentangled_mil.train.experiment import Result
from disentangled_mil.train.fold_results import load_result, save_result
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.out_of_fold import Headroom
from tests.support.cohorts import copy_with_change, replace_text, small_planted

OPTIONS = TrainingOptions(dim=8, heads=2, dim_head=4, epochs=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A small cohort in files, without expression."""
    path = write_cohort(small_planted(20), tmp_path_factory.mktemp("cohort"))
    path.write_text(path.read_text().split("[expression]")[0])
    return path


@pytest.fixture
def train(cohort, tmp_path):
    """A function that trains folds of a run."""

    def run(only=None, out=tmp_path / "run", options=OPTIONS, cohort=cohort, **more):
        return run_cross_validation(cohort, "grading", out, options, folds=3, folds_only=only, quiet=True, **more)

    return run


@pytest.fixture
def untrained(monkeypatch):
    """Folds without any training."""
    table = pd.DataFrame({"patient": ["A"]})
    monkeypatch.setattr(cross_validation, "run_split", lambda *args, **kwargs: Result({}, table.copy()))


def test_jobs_of_folds_and_a_join_write_what_one_run_writes(train, tmp_path, capsys):
    whole = train(out=tmp_path / "whole")
    out = tmp_path / "run"
    assert train([2, 0]) == f"finished: fold0, fold2\nwhen all 3 folds are: python -m disentangled_mil join {out}"
    assert not (out / "metrics.json").exists()
    train([1])
    assert main(["join", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == whole.replace("whole", "run") + "\n"
    assert printed.err.endswith("computing metrics with their intervals over patients, and the report ...\n")
    for name in ("metrics.json", "predictions.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    files = [sorted(path.relative_to(run) for path in run.rglob("*")) for run in (out, tmp_path / "whole")]
    assert files[0] == files[1]
    notes = [json.loads((run / "run.json").read_text()) for run in (out, tmp_path / "whole")]
    assert len(notes[0].pop("starts")) == 2
    assert len(notes[1].pop("starts")) == 1
    assert notes[0] == notes[1]
    assert join_folds(out) == train([1], resume=True) == train(resume=True)  # all tell the table again


def test_resuming_the_whole_run_trains_the_folds_that_no_job_has_trained(train, tmp_path, untrained, monkeypatch):
    monkeypatch.setattr(run_folder.RunFolder, "report", lambda self: "table")
    train([1])
    seen = []
    plain = cross_validation.run_split
    monkeypatch.setattr(
        cross_validation, "run_split", lambda split, *args, **kwargs: seen.append(args[2].name) or plain()
    )
    assert train(resume=True) == "table"
    assert seen == ["fold0", "fold2"]
    assert (tmp_path / "run" / "predictions.csv").read_text() == "fold,patient\n0,A\n1,A\n2,A\n"


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (Classification(["01", "NA"], class_weight=torch.tensor([0.1, 1 / 3])), {"label": ["01", "NA"] * 4}),
        (DiscreteSurvival(torch.tensor([0.1, 2.0])), {"time": [0.05, 1.0, 1 / 3, 4.0] * 2, "event": [True, False] * 4}),
    ],
)
def test_results_of_a_fold_are_read_as_they_were(task, labels, tmp_path):
    logits = {model: torch.randn(8, task.outputs) for model in ("linear", "student", "distilled")}
    evaluations = {"test": Evaluation(task, labels, list("ABCDEFGH"), logits)}
    metrics = {model: {"test": {"auc": np.float64(0.1), "nan": np.nan, "patients": 8}} for model in logits}
    predictions = pd.DataFrame({"patient": ["01", "NA"], "risk": np.float32([1 / 3, np.nan]), "event": [True, False]})
    result = Result(metrics, predictions, Headroom("auc", 12, 0.1, 0.2, 1 / 3, -0.1, 0.5), evaluations)
    save_result(tmp_path, result, {"run": {"folds": 3}})
    read, notes = load_result(tmp_path, KINDS)
    assert notes == {"run": {"folds": 3}}
    assert repr(read.metrics) == repr(metrics).replace("np.float64(0.1)", "0.1")
    assert read.headroom == result.headroom
    assert read.predictions.to_csv(index=False) == predictions.to_csv(index=False)
    assert compare([read.evaluations], resamples=20) == compare([evaluations], resamples=20)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ([3], "folds_only must hold numbers from 0 to 2, got 3"),
        ([-1], "folds_only must be at least 0, got -1"),
        ([], r"folds_only must hold every number once, and at least one, got \[\]"),
        ([1, 1], r"folds_only must hold every number once, and at least one, got \[1, 1\]"),
    ],
)
def test_wrong_numbers_of_folds_are_refused(train, only, message):
    with pytest.raises(ValueError, match=message):
        train(only)


def test_final_students_follow_all_folds(train):
    with pytest.raises(ValueError, match="refit must follow all folds, got folds_only: join them, then train with"):
        train([1], refit=True)


def test_a_join_names_the_folds_that_are_missing(train, untrained, tmp_path):
    train([1])
    with pytest.raises(ValueError, match="all 3 folds, but fold0, fold2 are not finished; train with --folds-only 0,2"):
        join_folds(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"run.json"):
        join_folds(tmp_path)


def test_parts_of_other_runs_are_refused(train, untrained, tmp_path):
    train([0, 1])
    train([2], out=tmp_path / "other", options=replace(OPTIONS, epochs=2))
    (tmp_path / "other" / "fold2").rename(tmp_path / "run" / "fold2")
    with pytest.raises(ValueError, match=r"fold2/result.pt: .* differs in training; epochs must be 2, got 1"):
        join_folds(tmp_path / "run")
    with pytest.raises(ValueError, match=r"run: belongs .* differs in training; seed must be 0, got 1"):
        train([0], options=replace(OPTIONS, seed=1), resume=True)


def test_parts_of_another_cohort_are_refused(train, untrained, cohort, tmp_path):
    train([0])
    other = copy_with_change(cohort, tmp_path, "clinical.csv", ",G2", ",G3")
    with pytest.raises(ValueError, match=r"run: belongs to another run, which differs in cohort; give another --out$"):
        train([1], cohort=other)


def test_parts_of_other_versions_are_refused_by_the_join_alone(train, untrained, tmp_path, monkeypatch):
    train([0, 1])
    monkeypatch.setattr(run_note.torch, "__version__", "1.0")
    train([2])
    with pytest.raises(ValueError, match=r"fold2: must be trained with the versions of fold0, got torch 1.0 and \d"):
        join_folds(tmp_path / "run")
    monkeypatch.setattr(run_folder.RunFolder, "report", lambda self: "table")
    assert train(resume=True) == "table"


def test_a_fold_belongs_to_one_job_and_the_run_to_its_jobs(train, untrained):
    train([0])
    with pytest.raises(ValueError, match="fold0: already holds a fold; give --resume to continue it"):
        train([0])
    with pytest.raises(ValueError, match="run: already holds a run; give another --out, or --resume"):
        train()
    train([0], resume=True)


def test_a_job_that_fails_removes_nothing_of_the_others(train, untrained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("refused")

    monkeypatch.setattr(cross_validation, "run_split", fail)
    with pytest.raises(ValueError, match="refused"):
        train([0])
    assert (tmp_path / "run" / "run.json").stat().st_size


def test_a_damaged_result_is_named_before_another_fold_is_trained(train, untrained, tmp_path, monkeypatch):
    train([0, 1, 2])
    (tmp_path / "run" / "fold1" / "result.pt").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"fold1/result.pt: cannot be resumed from"):
        join_folds(tmp_path / "run")
    (tmp_path / "run" / "fold2" / "result.pt").unlink()
    monkeypatch.setattr(cross_validation, "run_split", lambda *args, **kwargs: pytest.fail("trained a fold"))
    with pytest.raises(ValueError, match=r"fold1/result.pt: cannot be resumed from"):
        train(resume=True)
    replace_text(tmp_path / "run" / "run.json", '"run": "train"', '"run": "demo"')
    with pytest.raises(ValueError, match=r"run.json: must describe a run of train .*, got 'demo'"):
        join_folds(tmp_path / "run")


def test_a_join_of_no_run_says_what_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: must be the folder of a run of train, but it has no"):
        join_folds(tmp_path)
