"""Targets out of fold and the headroom: who teaches whom, when distillation is declined, interruption."""

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from disentangled_mil import Bag, TokenSet
from disentangled_mil.metrics import PairedDifference
from disentangled_mil.train import out_of_fold, training
from disentangled_mil.train.building import StageBuilder
from disentangled_mil.train.datasets import CohortDataset
from disentangled_mil.train.experiment import Split, run_split
from disentangled_mil.train.out_of_fold import distill_out_of_fold, part_files
from tests.support.training import OPTIONS, few_choices

OUT_OF_FOLD = replace(OPTIONS, distillation_targets="out_of_fold", share_weight=0.5, calibrate=True)


@pytest.fixture(scope="module")
def finished_apart(split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    with few_choices():
        return folder, run_split(split, "grading", OUT_OF_FOLD, folder, quiet=True)


@pytest.fixture
def builder(split):
    penalties = {
        "student": {"mean": 0.01, "deviation": 0.01},
        "teacher": {"mean": 0.01, "deviation": 0.01, "genes": 0.01},
    }
    task, pipeline = split.train.fit_task("grading"), split.train.fit_expression()
    return StageBuilder(split.train, task, pipeline, OUT_OF_FOLD, penalties)


@pytest.fixture
def taught(monkeypatch):
    """The samples of every part and their teachers, which are not trained."""
    seen = {}

    def train_stage(name, stage, train, validation, options, folder, **kwargs):
        seen[name] = stage, train, validation, options
        stage.model.eval()

    monkeypatch.setattr(out_of_fold, "train_stage", train_stage)
    return seen


def gain_of(monkeypatch, low: float) -> None:
    """Let the interval of the headroom begin somewhere."""
    monkeypatch.setattr(out_of_fold, "gain", lambda *args: PairedDifference(low + 0.1, low, low + 0.2))


def test_every_part_leaves_its_log_and_the_predictions_of_the_patients_it_has_not_seen(finished_apart):
    folder, _ = finished_apart
    names = {path.name for path in (folder / "teachers").iterdir()}
    assert {path.with_suffix("") for path in (folder / "teachers").iterdir()} >= set(part_files(folder, OUT_OF_FOLD))
    ends = (".csv", ".progress.pt", ".safetensors")
    assert names == {f"repeat0-fold{fold}{end}" for fold in range(2) for end in ends}
    stored = load_file(folder / "teachers" / "repeat0-fold1.safetensors")
    assert set(stored) == {"logits", "10x.shares", "20x.shares"}


def test_student_learns_predictions_and_shares_but_no_vectors(finished_apart):
    folder, result = finished_apart
    log = pd.read_csv(folder / "distilled.csv")
    assert log["prediction"].isna().tolist() == log["share"].isna().tolist() == [True, False, False]
    assert "representation" not in log
    assert "distilled" in result.metrics


def test_headroom_is_out_of_fold_over_the_patients_who_teach(finished_apart):
    _, result = finished_apart
    headroom = result.headroom
    assert (headroom.metric, headroom.patients) == ("auc", 12)  # of 16 with expression, 4 choose the epoch
    assert headroom.difference == pytest.approx(headroom.teacher - headroom.linear)
    assert headroom.low < headroom.difference < headroom.high


def test_teachers_have_not_seen_the_patients_of_their_targets_and_nobody_learns_from_patients_without_expression(
    dataset, builder, taught, tmp_path
):
    validation = dataset
    targets, _ = distill_out_of_fold(builder, dataset, validation, tmp_path, quiet=True)
    paired = {patient for patient, has in zip(dataset.patients, dataset.paired, strict=True) if has}
    assert len(taught) == 2
    held = []
    for stage, train, chosen_on, options in taught.values():
        assert chosen_on.samples == validation.samples
        assert set(train.patients) < paired
        assert options.seed != OUT_OF_FOLD.seed
        held.append(paired - set(train.patients))
        outputs = stage.outputs(dataset)
        rows = torch.tensor([patient in held[-1] for patient in dataset.patients])
        ratio = outputs.logits[rows] / targets["20x"].logits[rows]  # the temperature
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert held[0] | held[1] == paired
    assert not held[0] & held[1]
    for target in targets.values():
        assert torch.equal(target.present, dataset.paired)
        assert target.subspaces is None
        assert not target.logits[~dataset.paired].any()
        assert not target.shares[~dataset.paired].any()


def test_teachers_out_of_fold_see_a_part_of_large_bags(dataset, builder, taught, tmp_path):
    builder = replace(builder, options=replace(OUT_OF_FOLD, teacher_tokens=3))
    distill_out_of_fold(builder, dataset, dataset, tmp_path, quiet=True)
    largest = [bag.mask.sum(1).max() for bag in dataset.batch(range(len(dataset))).bags.values()]
    assert min(largest) > 3
    for _, train, chosen_on, _ in taught.values():
        for part in (train, chosen_on):
            assert {int(bag.mask.sum(1).max()) for bag in part.batch(range(len(part))).bags.values()} == {3}


def test_linear_models_are_compared_on_the_same_folds(dataset, builder, taught, tmp_path, monkeypatch):
    seen, teacher = [], out_of_fold.linear_teacher

    def spy(*args, **kwargs):
        teach = teacher(*args, **kwargs)
        return lambda part: (seen.append([dataset.patients[row] for row in part.rows]), teach(part))[1]

    monkeypatch.setattr(out_of_fold, "linear_teacher", spy)
    distill_out_of_fold(builder, dataset, None, tmp_path, quiet=True)
    assert seen[:2] == [list(train.patients) for _, train, _, _ in taught.values()]


def test_targets_of_repeats_are_averaged(dataset, builder, taught, tmp_path):
    builder = replace(builder, options=replace(OUT_OF_FOLD, teacher_repeats=2, calibrate=False))
    targets, _ = distill_out_of_fold(builder, dataset, None, tmp_path, quiet=True)
    row = int(torch.nonzero(dataset.paired)[0, 0])
    unseen = [stage for stage, train, _, _ in taught.values() if dataset.patients[row] not in train.patients]
    assert (len(taught), len(unseen)) == (4, 2)
    outputs = torch.stack([stage.outputs(dataset).logits[row] for stage in unseen])
    torch.testing.assert_close(targets["10x"].logits[row], outputs.mean(0))


@pytest.mark.parametrize(("low", "distilled"), [(0.01, True), (0.0, False), (-0.2, False), (float("nan"), False)])
def test_auto_distills_where_the_interval_lies_above_zero(split, tmp_path, monkeypatch, capsys, low, distilled):
    gain_of(monkeypatch, low)
    options = replace(OUT_OF_FOLD, distill="auto", epochs=1)
    result = run_split(split, "grading", options, tmp_path, models=("student", "distilled"))
    assert ("distilled" in result.metrics) == (tmp_path / "distilled.json").exists() == distilled
    assert set(result.predictions["model"]) == {"student", *(["distilled"] if distilled else [])}
    said = capsys.readouterr().err
    assert said.count("headroom: out-of-fold AUC of 12 training patients: teacher 0.") == 1
    assert [line for line in said.splitlines() if line.startswith("computing")] == [
        "computing the penalties of the linear model on slides ...",
        "computing the penalties of the linear model on slides and genes ...",
        "computing headroom: linear models out of fold, and the interval of the gain over patients ...",
    ]


def test_always_distills_without_any_headroom(split, tmp_path, monkeypatch):
    gain_of(monkeypatch, -0.5)
    result = run_split(split, "survival", replace(OUT_OF_FOLD, epochs=1), tmp_path, quiet=True)
    assert list(result.metrics) == ["linear", "genes", "teacher", "student", "distilled"]


def test_never_trains_no_teacher_out_of_fold(split, tmp_path):
    options = replace(OUT_OF_FOLD, distill="never", epochs=1)
    result = run_split(split, "grading", options, tmp_path, quiet=True)
    assert list(result.metrics) == ["linear", "genes", "teacher", "student"]
    assert result.headroom is None
    assert not (tmp_path / "teachers").exists()


def test_auto_measures_the_headroom_for_targets_in_sample_too(split, tmp_path, monkeypatch):
    gain_of(monkeypatch, 0.1)
    options = replace(OUT_OF_FOLD, distill="auto", distillation_targets="in_sample", epochs=1)
    result = run_split(split, "grading", options, tmp_path, quiet=True)
    assert result.headroom.low == 0.1
    assert "representation" in pd.read_csv(tmp_path / "distilled.csv")


def test_targets_are_altered_before_the_student_sees_them(split, tmp_path, monkeypatch):
    """The control of permuted targets: within each class, among the patients who have some."""
    seen = {}

    def permute(targets, dataset):
        labels = np.array(dataset.labels["label"])
        order = np.arange(len(dataset))
        for label in set(labels):
            rows = np.flatnonzero((labels == label) & dataset.paired.numpy())
            order[rows] = np.roll(rows, 1)
        seen.update(before=targets, dataset=dataset, order=torch.tensor(order))
        return {name: target.select(torch.tensor(order)) for name, target in targets.items()}

    train_stage = training.train_stage

    def spy(name, stage, *args, **kwargs):
        seen["given"] = getattr(stage, "targets", None)
        return train_stage(name, stage, *args, **kwargs)

    monkeypatch.setattr(training, "train_stage", spy)
    options = replace(OUT_OF_FOLD, epochs=1)
    run_split(split, "grading", options, tmp_path, models=["distilled"], alter_targets=permute, quiet=True)
    for name, target in seen["given"].items():
        assert torch.equal(target.logits, seen["before"][name].logits[seen["order"]])
        assert torch.equal(target.present, seen["dataset"].paired)


def test_models_that_are_not_wanted_are_not_trained(split, tmp_path):
    options = replace(OUT_OF_FOLD, epochs=1)
    result = run_split(split, "grading", options, tmp_path, models=("student", "linear"), quiet=True)
    assert list(result.metrics) == ["linear", "student"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"student{end}" for end in (".csv", ".json", ".progress.pt", ".safetensors")
    }


def test_models_must_be_known_and_have_their_teacher(split, tmp_path):
    with pytest.raises(ValueError, match=r"^models must be one of 'linear', .*, got 'oracle'$"):
        run_split(split, "grading", OPTIONS, tmp_path / "run", models=("oracle",))
    with pytest.raises(
        ValueError, match=r"^models must hold 'teacher' for distillation_targets = 'in_sample', got dis"
    ):
        run_split(split, "grading", OPTIONS, tmp_path / "run", models=("distilled",))
    assert not (tmp_path / "run").exists()


def test_more_folds_than_patients_with_expression_are_refused(split, tmp_path):
    options = replace(OUT_OF_FOLD, teacher_folds=13)
    message = r"^teacher_folds must be at most the number of training patients with expression, 12, got 13$"
    with pytest.raises(ValueError, match=message):
        run_split(split, "grading", options, tmp_path, models=["distilled"], quiet=True)


def test_a_class_with_fewer_patients_than_folds_is_pooled(dataset, builder, taught, tmp_path):
    builder = replace(builder, options=replace(OUT_OF_FOLD, teacher_folds=7))
    counts = Counter(dict(zip(dataset.patients, dataset.labels["label"], strict=True)).values())
    assert min(counts.values()) < 7
    distill_out_of_fold(builder, dataset, None, tmp_path, quiet=True)
    assert len(taught) == 7


def test_bags_without_coordinates_and_merged_patients_are_distilled_out_of_fold(split, tmp_path):
    def as_sets(cohort):
        samples = tuple(
            replace(s, bags={n: Bag(b.patches, TokenSet.of([b.patches.shape[1]])) for n, b in s.load().items()})
            for s in cohort.samples
        )
        return replace(cohort, samples=samples)

    assert len(split.train.samples) > len(split.train.patients)  # several slides of some patients
    sets = Split(as_sets(split.train), {name: as_sets(cohort) for name, cohort in split.tests.items()})
    models = ("linear", "student", "distilled")
    result = run_split(sets, "survival", replace(OUT_OF_FOLD, epochs=1), tmp_path, models=models, quiet=True)
    assert list(result.metrics) == list(models)
    assert result.headroom.metric == "c_index"


def test_an_interruption_within_a_part_changes_no_number(split, finished_apart, tmp_path):
    """Killed in the second epoch of the second part, and continued."""
    program = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from disentangled_mil.train import out_of_fold, training
        from disentangled_mil.train.experiment import run_split
        from disentangled_mil.train.stages import TeacherStage
        from tests.support.training import few_choices, small_split
        from tests.train.test_out_of_fold import OUT_OF_FOLD

        plain, train = TeacherStage.loss, out_of_fold.train_stage

        def train_stage(name, *args, **kwargs):
            def loss(self, batch, epoch):
                if name == "repeat0-fold1" and epoch == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(self, batch, epoch)
            TeacherStage.loss = loss
            train(name, *args, **kwargs)

        out_of_fold.train_stage = train_stage
        with few_choices():
            run_split(small_split(), "grading", OUT_OF_FOLD, Path({str(tmp_path)!r}), quiet=True)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(pd.read_csv(tmp_path / "teachers" / "repeat0-fold1.csv")) == 1
    assert not (tmp_path / "teachers" / "repeat0-fold1.safetensors").exists()
    part = (tmp_path / "teachers" / "repeat0-fold0.safetensors").stat().st_mtime_ns
    result = run_split(split, "grading", OUT_OF_FOLD, tmp_path, resume=True, quiet=True)
    assert (tmp_path / "teachers" / "repeat0-fold0.safetensors").stat().st_mtime_ns == part
    whole, finished = finished_apart
    assert result.metrics == finished.metrics
    assert result.headroom == finished.headroom
    for path in whole.rglob("*.safetensors"):
        mine = load_file(tmp_path / path.relative_to(whole))
        assert all(torch.equal(value, mine[name]) for name, value in load_file(path).items()), path.name


def test_a_subset_of_a_dataset_has_the_same_rows(dataset):
    rows = torch.tensor([4, 1, len(dataset) - 1])
    part = dataset.subset(rows)
    assert isinstance(part, CohortDataset)
    assert part.patients == tuple(dataset.patients[row] for row in rows)
    ours, theirs = part.batch(range(3)), dataset.batch(rows)
    assert torch.equal(ours.target, theirs.target)
    assert torch.equal(ours.paired, theirs.paired)
    assert torch.equal(ours.bags["20x"].patches, theirs.bags["20x"].patches)
    assert torch.equal(ours.genes["tme"], theirs.genes["tme"])
    assert part.labels["label"] == [dataset.labels["label"][row] for row in rows]


def test_too_many_folds_are_refused_before_anything_is_trained(split, tmp_path):
    with pytest.raises(ValueError, match=r"^teacher_folds must be at most the number"):
        run_split(split, "grading", replace(OUT_OF_FOLD, teacher_folds=99), tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_part_is_the_same_where_another_numpy_computes_other_last_digits():
    edges = {"kind": "survival", "edges": [0.1 + 0.2, 365.5], "alpha": 0.0}
    assert out_of_fold._rounded(edges) == out_of_fold._rounded({**edges, "edges": [0.3, 365.5]})
    assert out_of_fold._rounded(edges) != out_of_fold._rounded({**edges, "edges": [0.3001, 365.5]})
