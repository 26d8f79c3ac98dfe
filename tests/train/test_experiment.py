import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines.utils import concordance_index
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from disentangled_mil import Bag, Student
from disentangled_mil.data.cohort import Cohort
from disentangled_mil.data.slide_reading import SlideReading
from disentangled_mil.train import training
from disentangled_mil.train.checkpoint import load_model
from disentangled_mil.train.comparison import compare
from disentangled_mil.train.experiment import Split, run_split
from disentangled_mil.train.stages import GeneStage, StudentStage, TeacherStage
from disentangled_mil.train.training import MODELS, NETWORKS


def weights(folder) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(folder / f"{name}.safetensors") for name in NETWORKS}


def assert_same_weights(first, second) -> None:
    for name, tensors in weights(first).items():
        others = load_file(second / f"{name}.safetensors")
        assert tensors.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in tensors.items()), name


@pytest.fixture
def recorded(monkeypatch):
    """What every stage is trained and chosen on, without training."""
    seen = {}

    def train_stage(name, stage, train, validation, *args, **kwargs):
        seen[name] = stage, train, validation
        stage.model.eval()

    monkeypatch.setattr(training, "train_stage", train_stage)
    return seen


def test_a_finished_split_has_its_files_and_nothing_half_written(finished):
    names = {path.name for path in finished.folder.iterdir()}
    ends = (".csv", ".json", ".safetensors", ".progress.pt")
    assert names == {f"{model}{end}" for model in NETWORKS for end in ends}


def test_checkpoints_load_and_say_how_they_came_about(finished, options, split):
    for name in NETWORKS:
        saved = load_model(finished.folder / name)
        assert saved.notes["name"] == name
        assert not saved.model.training
        assert saved.notes["task_name"] == "grading"
        assert saved.task.state() == split.train.fit_task("grading").state()
        assert saved.notes["training"]["epochs"] == 3
        assert saved.reading == SlideReading()
        assert (saved.expression is not None) == (name in ("genes", "teacher"))
    assert isinstance(load_model(finished.folder / "distilled").model, Student)


def test_predictions_and_metrics_are_of_every_model_and_test_patient(finished, split):
    table = finished.result.predictions
    assert list(table.columns[:3]) == ["model", "test", "patient"]
    assert list(finished.result.metrics) == list(MODELS) == list(table["model"].unique())
    for _, rows in table.groupby("model"):
        assert set(rows["patient"]) == set(split.tests["internal"].patients)
        assert rows["patient"].is_unique
        np.testing.assert_allclose(rows.filter(like="probability_").sum(1), 1, rtol=1e-5)


def test_metrics_are_those_of_the_written_predictions(finished, split):
    for name, rows in finished.result.predictions.groupby("model"):
        metrics = finished.result.metrics[name]["internal"]
        truth = split.tests["internal"].clinical["grade"][rows["patient"]].to_numpy()
        present = sorted(set(truth))
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, rows["predicted"]))
        one_against_rest = [roc_auc_score(truth == grade, rows[f"probability_{grade}"]) for grade in present]
        assert metrics["auc"] == pytest.approx(np.mean(one_against_rest))
        macro = {"labels": present, "average": "macro", "zero_division": 0.0}
        assert metrics["sensitivity"] == pytest.approx(recall_score(truth, rows["predicted"], **macro))
        assert metrics["f1"] == pytest.approx(f1_score(truth, rows["predicted"], **macro))
        assert (metrics["patients"], metrics["classes"]) == (10, len(present))


def test_nothing_about_test_patients_reaches_the_weights(split, options, finished, tmp_path):
    test = split.tests["internal"]
    samples = tuple(
        replace(s, bags={name: Bag(5 - 3 * bag.patches, bag.grid) for name, bag in s.load().items()})
        for s in test.samples
    )
    clinical = test.clinical.assign(grade=np.roll(test.clinical["grade"].to_numpy(), 1))
    other = replace(test, samples=samples, clinical=clinical, expression=test.expression * 7 + 1)
    changed = run_split(Split(split.train, {"internal": other}), "grading", options, tmp_path, quiet=True)
    assert_same_weights(finished.folder, tmp_path)
    assert not changed.predictions.equals(finished.result.predictions)
    for name in NETWORKS:
        assert (tmp_path / f"{name}.json").read_text() == (finished.folder / f"{name}.json").read_text()


def test_stages_train_on_training_patients_only_and_genes_on_those_with_expression(split, options, recorded, tmp_path):
    run_split(split, "grading", options, tmp_path, quiet=True)
    paired, tested = set(split.train.expression.index), set(split.tests["internal"].patients)
    for name, (_, train, validation) in recorded.items():
        taught, chosen = set(train.patients), set(validation.patients)
        assert taught
        assert chosen
        assert not taught & chosen
        assert not (taught | chosen) & tested
        if name in ("genes", "teacher"):
            assert taught | chosen == paired
        else:
            assert taught | chosen == set(split.train.patients)
            assert taught - paired
            assert chosen - paired


def test_patch_encoders_are_standardized_on_what_they_train_on(split, options, recorded, tmp_path):
    run_split(split, "grading", options, tmp_path, quiet=True)
    for name in ("teacher", "student", "distilled"):
        stage, train, _ = recorded[name]
        for magnification, branch in stage.model.branches.items():
            patches = torch.cat([s.load()[magnification].patches[0] for s in train.samples])
            torch.testing.assert_close(branch.patches.mean, patches.mean(0), atol=1e-5, rtol=1e-4)


def test_targets_of_distillation_are_computed_once_from_the_trained_teacher(
    split, options, recorded, tmp_path, monkeypatch
):
    calls = []
    targets = TeacherStage.targets

    def spy(self, dataset):
        calls.append((self, dataset))
        return targets(self, dataset)

    monkeypatch.setattr(TeacherStage, "targets", spy)
    run_split(split, "grading", options, tmp_path, quiet=True)
    assert len(calls) == 1
    assert calls[0][0] is recorded["teacher"][0]
    stage, train, _ = recorded["distilled"]
    assert calls[0][1] is train
    present = stage.targets["20x"].present
    expected = [patient in split.train.expression.index for patient in train.patients]
    assert present.tolist() == expected
    assert recorded["student"][0].targets is None


def test_student_and_distilled_student_start_alike(split, options, recorded, tmp_path):
    run_split(split, "grading", options, tmp_path, quiet=True)
    first, second = (recorded[name][0].model.state_dict() for name in ("student", "distilled"))
    # The linear models are fitted before the networks are trained, one of them also to the teacher's predictions.
    equal = {key: torch.equal(value, second[key]) for key, value in first.items()}
    assert all(same for key, same in equal.items() if not key.startswith("linear."))
    assert not equal["linear.bias"]


def test_distillation_changes_the_student_after_its_warm_up(finished):
    logs = {name: pd.read_csv(finished.folder / f"{name}.csv") for name in ("student", "distilled")}
    assert "prediction" not in logs["student"]
    assert logs["distilled"]["prediction"].isna().tolist() == [True, False, False]
    assert logs["distilled"]["task"][0] == logs["student"]["task"][0]
    assert logs["distilled"]["task"][2] != logs["student"]["task"][2]


def test_without_validation_everybody_teaches(split, options, recorded, tmp_path):
    run_split(split, "grading", replace(options, validation=0), tmp_path, quiet=True)
    for name, (_, train, validation) in recorded.items():
        assert validation is None
        assert len(set(train.patients)) == (16 if name in ("genes", "teacher") else 24)


def test_survival_has_hazards_and_a_concordance_of_its_risks(split, options, tmp_path):
    result = run_split(split, "survival", replace(options, epochs=1), tmp_path, quiet=True)
    clinical = split.tests["internal"].clinical
    for name, rows in result.predictions.groupby("model"):
        assert [column for column in rows if column.startswith("hazard_")] == ["hazard_0", "hazard_1", "hazard_2"]
        labels = clinical.loc[rows["patient"]]
        c_index = concordance_index(labels["time"], -rows["risk"].to_numpy(), labels["event"])
        assert result.metrics[name]["internal"]["c_index"] == pytest.approx(c_index)
    task = load_model(tmp_path / "student").task.state()
    died = split.train.clinical.query("event == 1")["time"]
    assert task["edges"] == pytest.approx(np.quantile(died, [1 / 3, 2 / 3]))


def test_an_interruption_of_any_stage_changes_no_number(split, options, finished, tmp_path, monkeypatch):
    """Interrupted within the second epoch of every stage, the third one of the distilled, and continued each time."""
    steps = {"genes": 3, "teacher": 3, "student": 3, "distilled": 5}

    def breaking(plain, name, applies):
        count = iter(range(1000))

        def loss(self, batch, epoch):
            if applies(self) and next(count) == steps[name]:
                raise KeyboardInterrupt
            return plain(self, batch, epoch)

        return loss

    applies = {
        "genes": (GeneStage, lambda stage: True),
        "teacher": (TeacherStage, lambda stage: True),
        "student": (StudentStage, lambda stage: stage.targets is None),
        "distilled": (StudentStage, lambda stage: stage.targets is not None),
    }
    for number, (name, (cls, chosen)) in enumerate(applies.items()):
        plain = cls.loss
        monkeypatch.setattr(cls, "loss", breaking(plain, name, chosen))
        with pytest.raises(KeyboardInterrupt):
            run_split(split, "grading", options, tmp_path, resume=number > 0, quiet=True)
        monkeypatch.setattr(cls, "loss", plain)
        assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
        assert [model for model in NETWORKS if (tmp_path / f"{model}.json").exists()] == list(NETWORKS)[:number]
        epochs = pd.read_csv(tmp_path / f"{name}.csv")["epoch"].tolist()
        assert epochs == ([1, 2] if name == "distilled" else [1])
        torch.manual_seed(99)
    result = run_split(split, "grading", options, tmp_path, resume=True, quiet=True)
    assert_same_weights(finished.folder, tmp_path)
    assert result.metrics == finished.result.metrics
    pd.testing.assert_frame_equal(result.predictions, finished.result.predictions, check_exact=True)
    for name in NETWORKS:
        for suffix in (".csv", ".json"):
            assert (tmp_path / f"{name}{suffix}").read_bytes() == (finished.folder / f"{name}{suffix}").read_bytes()


def test_a_patient_who_is_trained_on_cannot_be_tested(split, options, tmp_path):
    leaking = Split(split.train, {"internal": split.train.with_expression()})
    with pytest.raises(ValueError, match=r"^tests\['internal'\] must hold no training patient, got 'P3-0000'"):
        run_split(leaking, "grading", options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patients_without_expression_test_the_models_of_slides_only(split, options, tmp_path):
    test = split.tests["internal"]
    partly = replace(test, expression=test.expression.iloc[::2])
    result = run_split(Split(split.train, {"internal": partly}), "grading", replace(options, epochs=1), tmp_path)
    counts = {
        (model, name): metrics["patients"] for model, sets in result.metrics.items() for name, metrics in sets.items()
    }
    both = {(model, "internal with expression"): 5 for model in MODELS}
    assert counts == {**both, **{(model, "internal"): 10 for model in ("linear", "student", "distilled")}}
    gains = compare([result.evaluations], resamples=20)
    pairs = {name: [(one["first"], one["second"]) for one in found["gains"]] for name, found in gains.items()}
    assert pairs["internal"] == [("distilled", "student"), ("student", "linear")]
    assert ("teacher", "student") in pairs["internal with expression"]
    assert {name: found["patients"] for name, found in gains.items()} == {
        "internal": 10,
        "internal with expression": 5,
    }


@pytest.mark.parametrize("absent", ["no table", "no row"])
def test_a_cohort_without_expression_trains_students_alone(split, options, tmp_path, absent):
    expression = None if absent == "no table" else split.train.expression.iloc[:0]
    blind = Split(replace(split.train, expression=expression), split.tests)
    result = run_split(blind, "grading", replace(options, epochs=1, distill="auto"), tmp_path)
    assert list(result.metrics) == ["linear", "student"]
    assert load_model(tmp_path / "student").model.subspaces == ("prototype_1", "prototype_2")
    with pytest.raises(ValueError, match="distill must be 'auto' or 'never' for patients without expression"):
        run_split(blind, "grading", replace(options, distill="always"), tmp_path)
    with pytest.raises(ValueError, match=r"models must be linear or student .* without expression, got 'teacher'"):
        run_split(blind, "grading", options, tmp_path, models=["student", "teacher"])


def test_a_cohort_in_memory_of_merged_patients_is_read_the_same_later(split):
    first = split.train.subset(split.train.patients[:1])
    sample = replace(first.samples[0], name=first.patients[0])
    cohort = Cohort((sample,), first.clinical, unit="patient")
    assert cohort.reading().unit == "patient"
    assert first.reading().unit == "slide"


def test_descriptions_are_plain_json_without_the_device(finished):
    for name in NETWORKS:
        text = (finished.folder / f"{name}.json").read_text()
        assert json.loads(text)["notes"]["training"]["seed"] == 5
        assert "NaN" not in text


def test_too_few_patients_with_expression_to_choose_the_epoch_are_named(split, options, tmp_path):
    few = replace(split.train, expression=split.train.expression.iloc[:3])
    with pytest.raises(ValueError, match=r"^validation must leave at least one patient with expression .* 0\.25 of 3$"):
        run_split(Split(few, split.tests), "grading", options, tmp_path, quiet=True)


def test_the_truth_stands_beside_the_predictions(finished, split):
    predictions = finished.result.predictions
    for name, cohort in split.tests.items():
        rows = predictions[predictions["test"] == name]
        assert rows["label"].tolist() == cohort.clinical["grade"].loc[rows["patient"]].tolist()


def test_splits_of_a_cohort_that_lacks_expression_have_the_same_test_sets(split, options, tmp_path):
    assert not set(split.tests["internal"].patients) - split.tests["internal"].paired
    result = run_split(split._replace(lacking=True), "grading", options, tmp_path, models=["genes"], quiet=True)
    assert result.metrics["genes"].keys() == {"internal", "internal with expression"}
    assert result.metrics["genes"]["internal"] == result.metrics["genes"]["internal with expression"]
