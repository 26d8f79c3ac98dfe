import json
import os
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from disentangled_mil.data import expression
from disentangled_mil.data.cohort import StoredBag
from disentangled_mil.data.cohort_file import read_cohort
from disentangled_mil.data.expression import GeneStatistics
from disentangled_mil.data.folds import patient_folds
from disentangled_mil.data.planted import write_cohort
from disentangled_mil.data.slides import write_bag
from disentangled_mil.metrics import PairedDifference
from disentangled_mil.train import cross_validation, out_of_fold, run_folder
from disentangled_mil.train.cohort_digest import _fingerprint, cohort_digest, cohort_identity, expression_digest
from disentangled_mil.train.cross_validation import run_cross_validation, task_folds
from disentangled_mil.train.experiment import Result
from disentangled_mil.train.predict import predict_slides
from disentangled_mil.train.stages import GeneStage, StudentStage, TeacherStage
from disentangled_mil.train.training import MODELS, NETWORKS
from tests.support.cohorts import copy_with_change
from tests.support.training import few_choices

CHECKPOINTS = {f"{model}{end}" for model in NETWORKS for end in (".csv", ".json", ".safetensors")}


@pytest.fixture(scope="session")
def quick(options):
    return replace(options, epochs=2, task_warmup=0.5, batch_size=32)


@pytest.fixture(scope="session")
def description(planted, tmp_path_factory) -> Path:
    """A cohort in files; the last six patients have no expression, and one has no grade."""
    cohort = planted.cohort
    clinical = cohort.clinical.copy()
    clinical.loc[cohort.patients[3], "grade"] = None
    partly = replace(cohort, clinical=clinical, expression=cohort.expression.iloc[:-6])
    return write_cohort(planted._replace(cohort=partly), tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def finished_run(description, quick, tmp_path_factory):
    """Two folds of grading, and what was printed."""
    out = tmp_path_factory.mktemp("run") / "new" / "run"
    with few_choices():
        return out, run_cross_validation(description, "grading", out, quick, folds=2, quiet=True)


@pytest.fixture
def untrained(monkeypatch):
    """Fail where anything is trained."""

    def run_split(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(cross_validation, "run_split", run_split)


def test_cross_validation_leaves_the_documented_files(finished_run):
    out, _ = finished_run
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "metrics.json",
        "predictions.csv",
        "report.html",
        "fold0",
        "fold1",
    }
    for fold in ("fold0", "fold1"):
        assert {path.name for path in (out / fold).iterdir()} == CHECKPOINTS


@pytest.mark.parametrize("name", ["clinical.csv", "gene_sets.gmt", "expression.csv.gz", "slides"])
def test_nothing_that_training_reads_is_overwritten(description, quick, tmp_path, untrained, name):
    folder = tmp_path / "run" / "fold0"
    shutil.copytree(description.parent, folder)
    text = (folder / description.name).read_text()
    read = next((folder / name).rglob("*.h5")) if name == "slides" else folder / name
    out = tmp_path / "run" if name == "clinical.csv" else folder / "run"
    if name == "clinical.csv":
        read.rename(folder / "student.csv")
        text, read = text.replace("clinical.csv", "student.csv"), folder / "student.csv"
    else:
        out.mkdir()
        (out / "predictions.csv").symlink_to(read)
    (folder / description.name).write_text(text)
    before = read.read_bytes()
    with pytest.raises(ValueError, match=r"must be another file than .*, which is read"):
        run_cross_validation(folder / description.name, "grading", out, quick, folds=2, quiet=True)
    assert read.read_bytes() == before


def test_folds_test_every_graded_patient_once_and_models_of_genes_those_with_expression(finished_run, description):
    out, _ = finished_run
    cohort = read_cohort(description)
    labels, paired = cohort.labels("grading"), cohort.with_expression().labels("grading")
    table = pd.read_csv(out / "predictions.csv")
    tested = {key: sorted(rows["patient"]) for key, rows in table.groupby(["test", "model"])}
    wanted = {("test with expression", model): sorted(paired.index) for model in MODELS}
    assert tested == {**wanted, **{("test", m): sorted(labels.index) for m in ("linear", "student", "distilled")}}
    for number, fold in enumerate(task_folds(cohort, "grading", folds=2, seed=5)):
        assert set(table["patient"][table["fold"] == number]) == set(fold.test)
        assert set(fold.train) == set(labels.index) - set(fold.test)


def test_folds_are_balanced_by_label_and_presence_of_expression(planted):
    cohort = planted.cohort
    partly = replace(cohort, expression=cohort.expression.iloc[::2])
    label = partly.labels("survival")["event"]
    counts = [
        Counter((label[patient], patient in partly.paired) for patient in fold.test)
        for fold in task_folds(partly, "survival", folds=3, seed=0)
    ]
    for stratum in counts[0]:
        assert max(count[stratum] for count in counts) - min(count[stratum] for count in counts) <= 1
    strata = cohort.definition("survival").kind.strata({"event": label.tolist()})
    assert task_folds(cohort, "survival", folds=3, seed=0) == patient_folds(label.index, strata, folds=3, seed=0)


def test_expression_of_too_few_patients_for_the_folds_is_refused_with_a_way_out(planted):
    cohort = planted.cohort
    grades = cohort.labels("grading")["label"]
    two = [grades.index[0], grades.index[grades != grades.iloc[0]][0]]
    partly = replace(cohort, expression=cohort.expression.loc[two])
    with pytest.raises(ValueError, match=r"expression in each of the 3 folds, got 2 in all; without \[expression\]"):
        task_folds(partly, "grading", folds=3, seed=0)
    with pytest.raises(ValueError, match="'grading' needs patients with label and expression, got none; without"):
        task_folds(replace(cohort, expression=cohort.expression.iloc[:0]), "grading", folds=3, seed=0)


def test_metrics_are_those_of_the_predictions_of_each_fold(finished_run, description):
    out, _ = finished_run
    grades = read_cohort(description).clinical["grade"]
    table = pd.read_csv(out / "predictions.csv")
    written = json.loads((out / "metrics.json").read_text())
    assert written["task"] == "grading"
    assert "device" not in written["training"]
    for number, run in enumerate(written["splits"]):
        assert list(run) == list(MODELS)
        for model, metrics in run.items():
            for test, measured in metrics.items():
                rows = table[(table["fold"] == number) & (table["model"] == model) & (table["test"] == test)]
                accuracy = accuracy_score(grades[rows["patient"]], rows["predicted"])
                assert measured["accuracy"] == pytest.approx(accuracy)
                assert measured["patients"] == len(rows)


def test_table_shows_mean_and_spread_over_folds(finished_run):
    out, printed = finished_run
    splits = json.loads((out / "metrics.json").read_text())["splits"]
    auc = [split["teacher"]["test with expression"]["auc"] for split in splits]
    for line in ("33 patients: ", "27 patients: "):
        assert f"\n{line}" in printed
    assert f"{np.mean(auc):.3f} ± {np.std(auc, ddof=1):.3f}" in printed
    for name in ("SNN (genes)", "teacher", "student from scratch", "distilled student"):
        assert name in printed
    assert str(out) in printed


def test_gains_are_the_differences_of_the_rows_of_the_table(finished_run):
    out, printed = finished_run
    written = json.loads((out / "metrics.json").read_text())
    assert {test: len(found["gains"]) for test, found in written["gains"].items()} == {
        "test": 2,
        "test with expression": 4,
    }
    for test, found in written["gains"].items():
        for one in found["gains"]:
            pair = one["first"], one["second"]
            auc = [[split[model][test]["auc"] for split in written["splits"]] for model in pair]
            assert one["difference"] == pytest.approx(np.subtract(*auc).mean())
            assert f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]" in printed
    assert written["headroom"] == [None, None]  # targets in sample that are always distilled need none


def test_a_declined_distillation_is_told_and_kept(description, quick, tmp_path, monkeypatch):
    gains = iter([PairedDifference(0.2, 0.1, 0.3), PairedDifference(0.1, -0.1, 0.3)])
    monkeypatch.setattr(out_of_fold, "gain", lambda *args: next(gains))
    options = replace(quick, epochs=1, distill="auto", distillation_targets="out_of_fold")
    out = tmp_path / "run"
    printed = run_cross_validation(description, "survival", out, options, folds=2, quiet=True)
    assert "distilled student (slides), 1 of 2 splits" in printed
    assert printed.count("no: interval not above 0") == 1
    assert [one["distilled"] for one in json.loads((out / "metrics.json").read_text())["headroom"]] == [True, False]
    assert [(out / f"fold{fold}" / "distilled.json").exists() for fold in range(2)] == [True, False]
    assert not list(out.rglob("*.progress.pt"))
    parts = {f"repeat0-fold{fold}{end}" for fold in range(2) for end in (".csv", ".safetensors")}
    assert {path.name for path in (out / "fold1" / "teachers").iterdir()} == parts
    assert run_cross_validation(description, "survival", out, options, folds=2, resume=True, quiet=True) == printed


def test_an_interrupted_cross_validation_continues_to_the_same_numbers(
    finished_run, description, quick, tmp_path, monkeypatch
):
    plain, folds = TeacherStage.loss, []

    def break_in_the_second_fold(self, batch, epoch):
        if epoch == 0:
            folds.append(self)  # not its id, which the next one may get
        if len(set(folds)) == 2 and epoch > 0:
            raise KeyboardInterrupt
        return plain(self, batch, epoch)

    out = tmp_path / "run"
    monkeypatch.setattr(TeacherStage, "loss", break_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        run_cross_validation(description, "grading", out, quick, folds=2, quiet=True)
    assert not list(out.rglob("*.tmp"))
    assert {path.name for path in out.iterdir()} == {"run.json", "fold0", "fold1"}
    monkeypatch.setattr(TeacherStage, "loss", plain)
    printed = run_cross_validation(description, "grading", out, quick, folds=2, resume=True, quiet=True)
    whole, first = finished_run
    assert printed.replace(str(out), str(whole)) == first
    for name in ("metrics.json", "predictions.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    mine, theirs = (json.loads((place / "run.json").read_text()) for place in (out, whole))
    assert mine.keys() == theirs.keys()
    assert {key for key in theirs if mine[key] != theirs[key]} <= {"starts"}
    for path in whole.rglob("*.safetensors"):
        mine = load_file(out / path.relative_to(whole))
        assert all(torch.equal(value, mine[name]) for name, value in load_file(path).items())
    assert not list(out.rglob("*.progress.pt"))


def test_the_end_of_a_run_removes_what_is_its_own_only(finished_run, description, quick, monkeypatch, tmp_path):
    out, _ = finished_run
    shutil.copytree(out, tmp_path / "run")
    others = ["other/fold0/teacher.progress.pt", "other/teacher.progress.pt", "fold2/teacher.progress.pt"]
    others += [
        "fold0/mine.progress.pt",
        "fold0/.mine.csv.12.tmp",
        ".predictions-2.csv.12.tmp",
        "fold0/.teacher.csv.tmp",
    ]
    own = ["fold0/teacher.progress.pt", "fold1/.teacher.progress.pt.8570.tmp", ".predictions.csv.12.tmp"]
    for name in (*others, *own):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    (tmp_path / "run" / "metrics.json").unlink()
    result = Result({}, pd.DataFrame({"patient": ["A"]}))
    monkeypatch.setattr(
        cross_validation, "run_split", lambda *args, **kwargs: result._replace(predictions=result.predictions.copy())
    )
    monkeypatch.setattr(run_folder.RunFolder, "report", lambda self: "table")
    run_cross_validation(description, "grading", tmp_path / "run", quick, folds=2, resume=True, quiet=True)
    assert all((tmp_path / "run" / name).exists() for name in others)
    assert not any((tmp_path / "run" / name).exists() for name in own)


def test_resuming_trains_no_finished_epoch_again(description, quick, tmp_path, monkeypatch):
    """Interrupted in the second fold: nothing of the first one is trained twice."""
    plain = StudentStage.loss

    def stop_when_distilling(self, batch, epoch):
        if self.targets is not None and epoch > 0:
            raise KeyboardInterrupt
        return plain(self, batch, epoch)

    monkeypatch.setattr(StudentStage, "loss", stop_when_distilling)
    with pytest.raises(KeyboardInterrupt):
        run_cross_validation(description, "survival", tmp_path / "run", quick, folds=2, quiet=True)

    def stop(self, batch, epoch):
        raise AssertionError("trained again")

    def only_distilling(self, batch, epoch):
        assert self.targets is not None
        assert epoch > 0
        raise KeyboardInterrupt

    monkeypatch.setattr(GeneStage, "loss", stop)
    monkeypatch.setattr(TeacherStage, "loss", stop)
    monkeypatch.setattr(StudentStage, "loss", only_distilling)
    with pytest.raises(KeyboardInterrupt):
        run_cross_validation(description, "survival", tmp_path / "run", quick, folds=2, resume=True, quiet=True)


def test_resuming_a_finished_run_prints_its_table_again(finished_run, description, quick, untrained):
    out, printed = finished_run
    again = run_cross_validation(description, "grading", out, quick, folds=2, resume=True, quiet=True)
    assert again == printed


def test_another_device_may_finish_a_run(finished_run, description, quick, untrained):
    out, printed = finished_run
    options = replace(quick, device="meta")
    assert run_cross_validation(description, "grading", out, options, folds=2, resume=True, quiet=True) == printed


def test_an_occupied_folder_is_refused(finished_run, description, quick, untrained):
    out, _ = finished_run
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds a run; give another --out, or --resume to continue it"):
        run_cross_validation(description, "grading", out, quick, folds=2, quiet=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("label", "folds", "changes", "named"),
    [
        (
            "diagnosis",
            2,
            {},
            "task; name must be 'grading', got 'diagnosis'; column must be 'grade', got 'diagnosis'$",
        ),
        ("grading", 3, {}, "folds; folds must be 2, got 3$"),
        ("grading", 2, {"learning_rate": 0.5}, "training; learning_rate must be 0.01, got 0.5$"),
        ("survival", 3, {"dim": 4}, "folds, task, training; .*; dim must be 8, got 4$"),
    ],
)
def test_resuming_with_other_options_is_refused(
    finished_run, description, quick, untrained, label, folds, changes, named
):
    with pytest.raises(ValueError, match=f"belongs to another run, which differs in {named}"):
        run_cross_validation(
            description, label, finished_run[0], replace(quick, **changes), folds=folds, resume=True, quiet=True
        )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("clinical.csv", "G2", "G3"),
        ("cohort.toml", "[slides.10x]", "[slides]\ndrop_augmented = true\n[slides.10x]"),
        ("cohort.toml", "[slides.10x]", '[slides]\nbag = "patient"\n[slides.10x]'),
        ("cohort.toml", 'folder = "slides/10x"', 'folder = "slides/20x"'),
        ("cohort.toml", 'folder = "slides/10x"', 'folder = "slides/10x"\nstep = 448'),
        ("cohort.toml", "[genes]", "fraction = 0.5\n[genes]"),
        ("gene_sets.gmt", "\tTUMOR001", ""),
    ],
)
def test_resuming_with_another_cohort_is_refused(finished_run, description, quick, untrained, tmp_path, name, old, new):
    other = copy_with_change(description, tmp_path, name, old, new)
    with pytest.raises(ValueError, match=r"belongs to another run, which differs in cohort$"):
        run_cross_validation(other, "grading", finished_run[0], quick, folds=2, resume=True, quiet=True)


def test_resuming_is_refused_where_expression_would_be_fitted_otherwise_now(
    finished_run, description, quick, untrained, monkeypatch
):
    monkeypatch.setattr("disentangled_mil.data._gene_statistics._MAD_TO_STD", 100.0)
    with pytest.raises(ValueError, match=r"belongs to another run, which differs in cohort$"):
        run_cross_validation(description, "grading", finished_run[0], quick, folds=2, resume=True, quiet=True)


def test_statistics_that_another_numpy_sums_otherwise_are_the_same(
    finished_run, description, quick, untrained, monkeypatch
):
    cohort = read_cohort(description)
    before, table, pipeline = cohort_identity(cohort), cohort.expression, cohort.fit_expression()
    fit = expression.fit_statistics

    def summed_otherwise(*arguments):
        genes, statistics = fit(*arguments)
        return genes, {
            gene: GeneStatistics(*(1e-15 + value * (1 + 1e-15) for value in known))
            for gene, known in statistics.items()
        }

    monkeypatch.setattr(expression, "fit_statistics", summed_otherwise)
    assert cohort.fit_expression().digest != pipeline.digest
    assert cohort_identity(cohort) != before
    assert expression_digest(table, cohort.fit_expression()) == expression_digest(table, pipeline)
    run_cross_validation(description, "grading", finished_run[0], quick, folds=2, resume=True, quiet=True)


def test_a_cohort_that_moved_is_the_same(finished_run, description, quick, untrained, tmp_path):
    moved = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "# moved\n[clinical]")
    assert run_cross_validation(moved, "grading", finished_run[0], quick, folds=2, resume=True, quiet=True)


def test_one_subspace_is_trained_without_cgc_and_predicts(description, quick, tmp_path, capfd):
    path = copy_with_change(description, tmp_path, "cohort.toml", "tme = [", "# tme = [")
    out = tmp_path / "run"
    run_cross_validation(path, "grading", out, replace(quick, epochs=1), folds=2)
    assert capfd.readouterr().err.count("no CGC: it needs two subspaces, and [genes] names one\n") == 1
    slides = {name: description.parent / "slides" / name for name in ("10x", "20x")}
    table = predict_slides(out / "fold1" / "distilled.json", slides, tmp_path / "predictions.csv")
    assert len(table) == len(list(slides["10x"].iterdir()))
    assert table.filter(like="probability").notna().all(axis=None)


@pytest.fixture
def slides_alone(description, tmp_path) -> Path:
    """The cohort without a word of genes."""
    path = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    path.write_text(path.read_text().split("[expression]")[0])
    return path


def test_slides_and_labels_alone_train_students_and_a_final_one_that_predicts(slides_alone, quick, tmp_path, capfd):
    out, options = tmp_path / "run", replace(quick, epochs=1, distill="auto")
    printed = run_cross_validation(slides_alone, "grading", out, options, folds=2, refit=True)
    said = capfd.readouterr().err
    assert said.count("no expression: students are trained on slides alone, without a teacher to distill\n") == 1
    assert "final: students of all 33 patients\n" in said
    assert f"students of all patients, for new slides: {out / 'final'}" in printed
    assert list(json.loads((out / "metrics.json").read_text())["splits"][0]) == ["linear", "student"]
    files = {f"student{end}" for end in (".csv", ".json", ".safetensors")}
    for folder in ("fold0", "fold1", "final"):
        assert {path.name for path in (out / folder).iterdir()} == files
    slides = {name: slides_alone.parent / "slides" / name for name in ("10x", "20x")}
    table = predict_slides(out, slides, tmp_path / "out.csv", quiet=True)
    assert table.equals(predict_slides(out / "final" / "student.json", slides, tmp_path / "final.csv", quiet=True))


def test_training_sees_a_part_of_large_bags_and_predictions_see_all(slides_alone, quick, tmp_path, monkeypatch, capfd):
    seen = {"loss": set(), "logits": set()}
    for name, plain in [(name, getattr(StudentStage, name)) for name in seen]:

        def note(stage, batch, *rest, name=name, plain=plain):
            seen[name] |= {count for bag in batch.bags.values() for count in bag.mask.sum(1).tolist()}
            return plain(stage, batch, *rest)

        monkeypatch.setattr(StudentStage, name, note)
    counts = [bag.patches.shape[1] for s in read_cohort(slides_alone).samples for bag in s.load().values()]
    most = sorted(counts)[len(counts) // 2]
    options = replace(quick, epochs=1, distill="auto", training_tokens=most)
    run_cross_validation(slides_alone, "grading", tmp_path / "run", options, folds=2)
    large = sum(count > most for count in counts)
    assert f"{large} bags hold more patches than training_tokens = {most}: each epoch" in capfd.readouterr().err
    assert 0 < max(seen["loss"]) <= most < max(seen["logits"])


def test_a_refit_that_was_interrupted_or_left_out_follows_a_finished_run(slides_alone, quick, tmp_path, monkeypatch):
    out, plain = tmp_path / "run", StudentStage.loss

    def run(**options):
        return run_cross_validation(slides_alone, "grading", out, options=changed, folds=2, quiet=True, **options)

    def stop(self, batch, epoch):
        if epoch:
            raise KeyboardInterrupt
        return plain(self, batch, epoch)

    changed = replace(quick, distill="auto")
    without = run()
    metrics = (out / "metrics.json").read_bytes()
    monkeypatch.setattr(StudentStage, "loss", stop)
    with pytest.raises(KeyboardInterrupt, match="continue with --resume"):
        run(resume=True, refit=True)
    with pytest.raises(ValueError, match="final: must hold a finished training"):
        predict_slides(out, {}, tmp_path / "out.csv")
    assert run(resume=True) == without
    monkeypatch.setattr(StudentStage, "loss", plain)
    assert run(resume=True, refit=True).startswith(without)
    assert len(pd.read_csv(out / "final" / "student.csv")) == 2
    monkeypatch.setattr(cross_validation, "train_models", lambda *args, **kwargs: pytest.fail("trained again"))
    run(resume=True, refit=True)
    assert (out / "metrics.json").read_bytes() == metrics


@pytest.mark.parametrize(("targets", "needed"), [("in_sample", ["teacher"]), ("out_of_fold", [])])
def test_the_final_students_are_those_of_the_folds_on_all_patients(
    description, quick, tmp_path, monkeypatch, targets, needed
):
    seen = {}
    monkeypatch.setattr(cross_validation, "train_models", lambda cohort, *args, **kw: seen.update(kw, cohort=cohort))
    monkeypatch.setattr(cross_validation, "run_split", lambda *args, **kw: Result({}, pd.DataFrame({"patient": []})))
    monkeypatch.setattr(run_folder.RunFolder, "report", lambda self: "table")
    options = replace(quick, distillation_targets=targets)
    run_cross_validation(description, "grading", tmp_path / "run", options, folds=2, refit=True, quiet=True)
    assert seen["models"] == ["student", *needed, "distilled"]
    assert len(seen["cohort"].patients) == 33


def test_expression_tells_cohorts_apart(description):
    cohort = read_cohort(description)
    renamed = cohort.expression.rename(columns={"TME000": "TME999"})
    others = (replace(cohort, expression=table) for table in (None, renamed, cohort.expression * 2))
    digests = {cohort_digest(other) for other in (cohort, read_cohort(description), *others)}
    assert len(digests) == 4


def test_every_option_of_reading_and_the_unit_tell_cohorts_apart(description):
    cohort = read_cohort(description)
    changes = {"transform": "log", "drop_augmented": True, "step": 3.5, "as_set": True, "max_tokens": 9}
    changes |= {"features": "UNI", "coords": "places"}
    assert {"paths", *changes} == {field.name for field in fields(StoredBag)}
    first, *others = cohort.samples
    digests = {cohort_digest(cohort), cohort_digest(replace(cohort, unit="patient"))}
    for name, value in changes.items():
        changed = replace(first, bags={**first.bags, "20x": replace(first.bags["20x"], **{name: value})})
        digests.add(cohort_digest(replace(cohort, samples=(changed, *others))))
    assert len(digests) == 9


def test_slides_of_the_same_size_tell_cohorts_apart_and_their_times_do_not(planted, tmp_path):
    cohort = read_cohort(write_cohort(planted, tmp_path))
    path = cohort.samples[5].bags["20x"].paths[0]
    before, data = cohort_digest(cohort), bytearray(path.read_bytes())
    os.utime(path, (0, 0))
    assert cohort_digest(cohort) == before
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert cohort_digest(cohort) != before


def test_the_first_and_the_last_megabyte_of_a_slide_are_compared(tmp_path):
    path = tmp_path / "slide.h5"
    seen = set()
    for at in (None, 0, (1 << 20) - 1, 1 << 20, 2 << 20, (3 << 20) - 1):
        data = bytearray(3 << 20)
        if at is not None:
            data[at] = 1
        path.write_bytes(data)
        seen.add(_fingerprint(path))
    assert len(seen) == 5  # the middle is not looked at
    path.write_bytes(bytes(4 << 20))
    assert _fingerprint(path) not in seen


def test_a_folder_is_taken_by_one_of_two_runs(description, quick, tmp_path, monkeypatch):
    """The second run comes when the first has looked and found the folder free."""
    started, splits = [], cross_validation._splits

    def look_and_wait(*args):
        found = splits(*args)
        if not started:
            started.append("other")
            with pytest.raises(KeyboardInterrupt):
                run_cross_validation(description, "grading", tmp_path / "run", quick, folds=2, quiet=True)
        return found

    def run_split(*args, **kwargs):
        (tmp_path / "run" / "fold0").mkdir()
        (tmp_path / "run" / "fold0" / "genes.progress.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "_splits", look_and_wait)
    monkeypatch.setattr(cross_validation, "run_split", run_split)
    with pytest.raises(ValueError, match="run: already holds a run"):
        run_cross_validation(description, "grading", tmp_path / "run", quick, folds=2, quiet=True)
    assert (tmp_path / "run" / "run.json").stat().st_size


@pytest.mark.parametrize("error", [ValueError("refused"), FloatingPointError("nan"), KeyboardInterrupt()])
def test_a_run_that_trained_nothing_leaves_the_folder_free(description, quick, tmp_path, monkeypatch, error):
    out = tmp_path / "new" / "run"

    def run_split(split, label, options, folder, **kwargs):
        folder.mkdir(parents=True, exist_ok=True)
        raise error

    monkeypatch.setattr(cross_validation, "run_split", run_split)
    with pytest.raises(type(error)) as caught:
        run_cross_validation(description, "survival", out, quick, folds=2, quiet=True)
    assert str(caught.value) == str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_nothing_leaves_the_files_of_others(description, quick, tmp_path, monkeypatch):
    others = [tmp_path / "fold1", tmp_path / "fold0" / "notes.txt", tmp_path / "notes.txt"]
    (tmp_path / "fold0").mkdir()
    for path in others:
        path.touch()

    def run_split(*args, **kwargs):
        raise ValueError("refused")

    monkeypatch.setattr(cross_validation, "run_split", run_split)
    with pytest.raises(ValueError, match="refused"):
        run_cross_validation(description, "survival", tmp_path, quick, folds=2, quiet=True)
    assert all(path.exists() for path in others)
    assert not (tmp_path / "run.json").exists()


def test_a_run_that_trains_for_another_process_keeps_its_folder(description, quick, tmp_path, monkeypatch):
    """Before its first epoch is finished, another one tries to resume it: as it is, and with other options."""
    out, check = tmp_path / "run", cross_validation.BagCache.check

    def intrude(*args, **kwargs):
        with pytest.raises(ValueError, match=f"run: is in use by process {os.getpid()} on"):
            run_cross_validation(description, "grading", out, quick, folds=2, resume=True, quiet=True)
        with pytest.raises(ValueError, match="belongs to another run, which differs in folds"):
            run_cross_validation(description, "grading", out, quick, folds=3, resume=True, quiet=True)
        assert (out / "run.json").stat().st_size
        monkeypatch.setattr(cross_validation.BagCache, "check", check)
        (out / "genes.progress.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation.BagCache, "check", intrude)
    with pytest.raises(KeyboardInterrupt, match="continue with --resume"):
        run_cross_validation(description, "grading", out, quick, folds=2, quiet=True)


def test_what_was_trained_is_not_trained_over(description, quick, tmp_path):
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "genes.progress.pt").touch()
    with pytest.raises(ValueError, match="already holds a run"):
        run_cross_validation(description, "survival", tmp_path, quick, folds=2, quiet=True)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_note_of_the_run_is_named(description, quick, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/run\.json: must describe the run"):
        run_cross_validation(description, "grading", tmp_path, quick, folds=2, resume=True, quiet=True)


def test_a_run_folder_that_cannot_be_made_is_refused_before_slides_are_read(description, quick, tmp_path, monkeypatch):
    def check(*args, **kwargs):
        raise AssertionError("read slides")

    monkeypatch.setattr(cross_validation.BagCache, "check", check)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file: must be a folder, to hold the run, got a file"):
        run_cross_validation(description, "grading", tmp_path / "file", quick, folds=2, quiet=True)
    with pytest.raises(NotADirectoryError, match=r"Not a directory: '.*/file/run'"):
        run_cross_validation(description, "grading", tmp_path / "file" / "run", quick, folds=2, quiet=True)


def test_there_must_be_a_run_to_resume(description, quick, tmp_path):
    with pytest.raises(ValueError, match="new: holds no run to resume"):
        run_cross_validation(description, "grading", tmp_path / "new", quick, folds=2, resume=True, quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_faulty_slide_is_refused_before_training_and_leaves_the_folder_free(planted, quick, tmp_path, untrained):
    description = write_cohort(planted, tmp_path / "cohort")
    path = sorted((tmp_path / "cohort" / "slides" / "20x").iterdir())[-1]
    good = path.read_bytes()
    path.unlink()
    write_bag(path, torch.ones(3, 8))
    data = bytearray(path.read_bytes())
    at = data.index(np.ones(24, np.float32).tobytes())
    data[at + 16 : at + 20] = np.float32("nan").tobytes()
    path.write_bytes(bytes(data))
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"{path.name}: features must be finite.*row 0"):
        run_cross_validation(description, "survival", out, quick, quiet=True)
    assert not out.exists()
    path.write_bytes(good)
    with pytest.raises(AssertionError, match="trained"):
        run_cross_validation(description, "survival", out, quick, quiet=True)


def test_too_few_patients_for_the_folds_are_refused_and_leave_the_folder_free(description, quick, tmp_path, untrained):
    with pytest.raises(ValueError, match="every label must have at least 20 patients"):
        run_cross_validation(description, "survival", tmp_path / "run", quick, folds=20, quiet=True)
    assert not (tmp_path / "run").exists()


def test_progress_goes_to_stderr(description, quick, tmp_path, monkeypatch, capsys):
    def run_split(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "run_split", run_split)
    with pytest.raises(KeyboardInterrupt):
        run_cross_validation(description, "grading", tmp_path / "run", quick, folds=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    first, *genes = printed.err.splitlines()[:3]
    cohort = read_cohort(description)
    counts = [
        ", ".join(f"{grade} {count}" for grade, count in c.clinical["grade"].value_counts().sort_index().items())
        for c in (cohort, cohort.with_expression())
    ]
    left_out = "; 1 without the label are left out"
    assert first == f"grading: 33 patients ({counts[0]}), 27 of them with expression ({counts[1]}){left_out}"
    assert counts[0].startswith("G2 ")
    assert genes == [
        f"{subspace}: {len(members)} of {len(members)} genes in the expression table"
        for subspace, members in cohort.gene_sets.items()
    ]
    assert "reading slides" in printed.err
    assert "fold0 (1 of 2): trains on" in printed.err


def test_events_are_told_before_training(description, quick, tmp_path, capsys, untrained):
    with pytest.raises(AssertionError, match="trained"):
        run_cross_validation(description, "survival", tmp_path / "run", quick, folds=2)
    cohort = read_cohort(description)
    events = [c.labels("survival")["event"] for c in (cohort, cohort.with_expression())]
    every, paired = (f"events {event.sum()}, censored {(~event).sum()}" for event in events)
    line = f"survival: 34 patients ({every}), 28 of them with expression ({paired})\n"
    assert line in capsys.readouterr().err


def test_what_one_fold_cannot_fit_is_refused_before_slides_are_read(
    description, quick, tmp_path, monkeypatch, untrained
):
    monkeypatch.setattr("disentangled_mil.data.cohort.Sample.load", lambda self: pytest.fail("read a slide"))
    many = copy_with_change(description, tmp_path, "cohort.toml", "bins = 3", "bins = 50")
    message = "^task 'survival', columns 'time', 'event': bins must be at most the number of observed events, .* got 50"
    with pytest.raises(ValueError, match=message):
        run_cross_validation(many, "survival", tmp_path / "run", quick, folds=2, quiet=True)
    fits = []

    def fit(cohort):
        fits.append(cohort)
        if len(fits) == 3:  # after the whole cohort and the first fold
            raise ValueError("the second fold cannot be fitted")
        return SimpleNamespace(genes={}, statistics={}, options=None, sizes={"tumor": 2, "tme": 3})

    with monkeypatch.context() as second:
        second.setattr("disentangled_mil.data.cohort.Cohort.fit_expression", fit)
        with pytest.raises(ValueError, match="the second fold"):
            run_cross_validation(description, "grading", tmp_path / "run", quick, folds=2, quiet=True)
    with pytest.raises(ValueError, match=r"^dim must be a multiple of groups = 3, got "):
        run_cross_validation(description, "grading", tmp_path / "run", replace(quick, heads=3), folds=2, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("grading", {"grade": "G2"}, "column 'grade': labels must hold at least two classes, got only 'G2'"),
        (
            "survival",
            {"event": "0"},
            "columns 'time', 'event': event must hold an observed event, got .* censored",
        ),
    ],
)
@pytest.mark.parametrize("patients", ["with expression", "all"])
def test_labels_that_are_all_alike_are_refused_before_slides_are_read(
    description, quick, tmp_path, untrained, task, labels, message, patients
):
    """The patients with expression are those who teach and test the teacher."""
    copy = copy_with_change(description, tmp_path, "cohort.toml", "[clinical]", "[clinical]")
    table = pd.read_csv(tmp_path / "clinical.csv", dtype=str)
    alike = slice(None) if patients == "all" else table.index[:28]
    table.loc[alike, list(labels)] = list(labels.values())
    table.to_csv(tmp_path / "clinical.csv", index=False)
    with pytest.raises(ValueError, match=f"^task '{task}', {message}"):
        run_cross_validation(copy, task, tmp_path / "run", quick, folds=2, quiet=True)
    assert not (tmp_path / "run").exists()
