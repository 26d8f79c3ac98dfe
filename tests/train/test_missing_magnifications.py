"""Patients who lack a magnification: they take part with the other one, from training to prediction."""

from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil import Bag, DistillationTargets, balance_shares
from disentangled_mil.cli import main
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.train import cross_validation
from disentangled_mil.train.building import StageBuilder, mean_prediction
from disentangled_mil.train.datasets import CohortDataset
from tests.support.cohorts import replace_text, small_planted
from tests.support.training import OPTIONS, few_choices

# All parts of the training: targets out of fold, shares, the linear model.
EVERYTHING = replace(OPTIONS, epochs=2, validation=0.0, distillation_targets="out_of_fold", share_weight=0.5)


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory):
    """A cohort in files; five slides have no file at 10x, four have none at 20x, and one file at 10x has no tiles."""
    folder = tmp_path_factory.mktemp("incomplete")
    path = write_cohort(small_planted(24), folder)
    replace_text(path, "[slides.10x]", '[slides]\nmissing = "allow"\n\n[slides.10x]')
    for magnification, chosen in (("10x", slice(0, 20, 4)), ("20x", slice(1, 16, 4))):
        for file in sorted((folder / "slides" / magnification).iterdir())[chosen]:
            file.unlink()
    with h5py.File(folder / "slides" / "10x" / sorted((folder / "slides" / "10x").iterdir())[-1], "w") as file:
        file["features"] = np.zeros((0, 8), "float16")
    return path


@pytest.fixture(scope="module")
def trained(incomplete, tmp_path_factory):
    """The command train."""
    out = tmp_path_factory.mktemp("train") / "run"
    with few_choices(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_validation, "TRAIN_OPTIONS", EVERYTHING)
        arguments = ["train", str(incomplete), "--task=grading", "--distill=always", "--folds=2", "--out", str(out)]
        assert main(arguments) == 0
    return out


def predicted(trained, folders, out, *options) -> int:
    """The command predict with the distilled student of the first fold."""
    slides = [argument for name, folder in folders.items() for argument in ("--slides", f"{name}={folder}")]
    return main(["predict", str(trained / "fold0" / "distilled.json"), *slides, "--out", str(out), *options])


def test_slides_that_lack_a_magnification_are_predicted_as_in_the_test_of_training(incomplete, trained, tmp_path):
    folders = {name: incomplete.parent / "slides" / name for name in ("10x", "20x")}
    samples = read_cohort(incomplete).samples
    owners = pd.DataFrame([(sample.name, sample.patient) for sample in samples], columns=["slide", "patient"])
    owners.to_csv(tmp_path / "patients.csv", index=False)
    assert predicted(trained, folders, tmp_path / "out.csv", "--patients", str(tmp_path / "patients.csv")) == 0
    found = pd.read_csv(tmp_path / "out.csv").set_index("patient")
    assert set(found.index) == set(owners["patient"])
    expected = pd.read_csv(trained / "predictions.csv").query("model == 'distilled' and fold == 0")
    columns = [name for name in expected if name.startswith("probability_")]
    assert len(columns) == 3
    np.testing.assert_allclose(found.loc[expected["patient"], columns], expected[columns], rtol=1e-4, atol=1e-5)
    lacking = [sample.patient for sample in samples if any(isinstance(bag, Bag) for bag in sample.bags.values())]
    assert len(lacking) == 10
    assert set(lacking) & set(expected["patient"])


def test_a_slide_without_tiles_anywhere_is_refused(incomplete, trained, tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("10x", "20x")}
    for folder in folders.values():
        folder.mkdir()
        with h5py.File(folder / "slide.h5", "w") as file:
            file["features"] = np.zeros((0, 8), "float16")
    assert predicted(trained, folders, tmp_path / "out.csv") == 2
    assert "10x/slide.h5: must hold at least one patch, got none; take the slide out" in capsys.readouterr().err


@pytest.fixture
def lacking(split) -> CohortDataset:
    """The training patients, of whom the first has no tiles at 10x and the second none at 20x."""
    samples = [
        replace(sample, bags={**sample.bags, name: Bag.empty(8, placed=True)})
        for sample, name in zip(split.train.samples[:2], ("10x", "20x"), strict=True)
    ]
    cohort = replace(split.train, samples=(*samples, *split.train.samples[2:]), missing="allow")
    return CohortDataset(cohort, "grading", cohort.fit_task("grading"), cohort.fit_expression())


@pytest.fixture
def builder(split):
    penalties = {
        "student": {"mean": 0.01, "deviation": 0.01},
        "teacher": {"mean": 0.01, "deviation": 0.01, "genes": 0.01},
    }
    task, pipeline = split.train.fit_task("grading"), split.train.fit_expression()
    return StageBuilder(split.train, task, pipeline, replace(EVERYTHING, prediction_weight=1.0), penalties)


def test_targets_leave_out_the_magnification_that_a_sample_lacks(lacking, builder):
    teacher = builder.teacher(lacking)
    targets = teacher.targets(lacking)
    assert targets["10x"].present.tolist() == [False, *lacking.paired.tolist()[1:]]
    shares = teacher.outputs(lacking).branches["10x"].shares
    rows = torch.arange(1, int(lacking.paired.sum()))
    torch.testing.assert_close(targets["10x"].shares[rows], balance_shares(shares[rows]))


def test_the_linear_model_learns_from_the_magnifications_that_a_sample_has():
    logits = torch.tensor([[1.0], [2.0], [3.0]])
    of_10x = DistillationTargets(logits, torch.tensor([True, False, False]))
    of_20x = DistillationTargets(3 * logits, torch.tensor([True, True, False]))
    mean = mean_prediction({"10x": of_10x, "20x": of_20x})
    assert mean.present.tolist() == [True, True, False]
    assert mean.logits[:2].tolist() == [[2.0], [6.0]]


def test_prototypes_are_matched_on_the_samples_that_have_the_magnification(lacking, builder, monkeypatch):
    targets = builder.teacher(lacking).targets(lacking)
    everyone = {name: replace(each, present=torch.ones_like(each.present)) for name, each in targets.items()}
    stage, lengths = builder.student(lacking, everyone), []

    def record(first, second):
        lengths.append((first.shape[2] // 8, second.shape[2] // 8))
        return torch.arange(first.shape[1])[None]

    monkeypatch.setattr("disentangled_mil.train.stages.student.match_prototypes", record)
    stage.begin_epoch(stage.first_distilled, lacking)
    assert lengths == [(len(lacking) - 1,) * 2] * 2


def test_patch_statistics_are_missing_where_the_magnification_is(lacking, builder):
    for values in lacking.patch_statistics()["10x"]:
        assert values.isnan().all(1).nonzero().tolist() == [[0]]
    assert lacking.present("10x").tolist() == [False] + [True] * (len(lacking) - 1)
    student = builder.student(lacking)
    student.model.eval()
    assert student.logits(lacking.batch([0, 1])).isfinite().all()


def test_a_magnification_that_no_training_sample_has_is_named(lacking, builder):
    with pytest.raises(ValueError, match="a training patient must have tiles at 10x, got none among 1 samples"):
        builder.student(lacking.subset([0]))


def test_a_cohort_refuses_samples_without_tiles_unless_they_may_lack_a_magnification():
    full, empty = Bag.from_slide(torch.ones(2, 4)), Bag.empty(4)
    clinical = pd.DataFrame({"grade": ["G2"]}, index=["A"])
    partial = (Sample("slide", "A", {"10x": full, "20x": empty}),)
    with pytest.raises(ValueError, match="sample 'slide' must have tiles, got none at 20x; missing"):
        Cohort(partial, clinical)
    assert Cohort(partial, clinical, missing="allow").reading().missing == "allow"
    with pytest.raises(ValueError, match=r"sample 'slide' must have tiles, got none at 10x, 20x$"):
        Cohort((Sample("slide", "A", {"10x": empty, "20x": empty}),), clinical, missing="allow")
