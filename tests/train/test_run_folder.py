import json
import re
import sys
from datetime import date

import pytest

from disentangled_mil.data.planted import TASKS
from disentangled_mil.train import run_folder
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.run_folder import RunFolder


@pytest.mark.parametrize(
    ("task", "reason"), [("grading", "nan: .* have one class"), ("survival", "nan: .* no event was observed")]
)
def test_the_report_says_why_a_metric_is_nan(tmp_path, task, reason):
    for value, lines in ((None, 1), (0.5, 0)):
        folder = RunFolder(tmp_path / str(value), task, TASKS[task], TrainingOptions(), resume=False, decides={})
        folder.path.mkdir()
        metrics = {"auc": value, "accuracy": 1, "c_index": value}
        counts = {"patients": 2, "labels": "two", "chance": {}}
        content = {"splits": [{"teacher": {"test": metrics}}], "tests": {"test": {"all": counts, "splits": [counts]}}}
        (folder.path / "metrics.json").write_text(json.dumps({**content, "gains": {}, "headroom": [None]}))
        assert len(re.findall(f"^{reason}", folder.report(), re.MULTILINE)) == lines


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"splits": []}', '{"splits": [1]}', '{"splits": [{"x": {}}]}']
)
def test_damaged_metrics_of_a_finished_run_are_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    folder = RunFolder(tmp_path / "new", "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={})
    folder.path = tmp_path
    with pytest.raises(ValueError, match=rf"{tmp_path}/metrics\.json: must hold the metrics of the finished run"):
        folder.report()


def test_what_is_recorded_is_no_reason_to_refuse_the_run(tmp_path):
    def folder(resume: bool) -> RunFolder:
        return RunFolder(
            tmp_path, "survival", TASKS["survival"], TrainingOptions(), resume=resume, decides={"run": "x"}
        )

    with folder(resume=False).taken():
        folder(resume=True).record(threads=7, description={"clinical": {"table": "a.csv"}, "day": date(2026, 1, 1)})
    with folder(resume=True).taken():
        folder(resume=True).record(threads=2)
    note = json.loads((tmp_path / "run.json").read_text())
    assert [start["threads"] for start in note["starts"]] == [7, 2]
    assert note["starts"][0]["versions"].keys() == {"disentangled_mil", "torch", "numpy", "python"}
    assert note["starts"][0]["command"] == sys.orig_argv
    assert date.fromisoformat(note["starts"][0]["date"][:10]) <= date.today()
    assert note["description"] == {"clinical": {"table": "a.csv"}, "day": "2026-01-01"}
    assert note["task"]["columns"] == {"time": "time", "event": "event"}
    assert note["run"] == "x"


def test_a_note_that_cannot_be_written_leaves_the_folder_free(tmp_path, monkeypatch):
    def jobs() -> RunFolder:
        decides = {"run": "x"}
        return RunFolder(
            tmp_path / "run",
            "grading",
            TASKS["grading"],
            TrainingOptions(),
            resume=False,
            decides=decides,
            only=["fold0"],
        )

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(run_folder, "write_json", full)
        with pytest.raises(OSError, match="No space left"), jobs().taken():
            raise AssertionError("the run must not begin")
    assert not (tmp_path / "run" / "run.json").exists()
    with jobs().taken():
        assert json.loads((tmp_path / "run" / "run.json").read_text())["run"] == "x"


def test_a_run_that_another_process_ended_meanwhile_is_seen_under_the_lock(tmp_path):
    def folder() -> RunFolder:
        return RunFolder(tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={})

    late = folder()
    with folder().taken():
        (tmp_path / "metrics.json").touch()
    with pytest.raises(ValueError, match=r"already holds a run; give another --out, or --resume"), late.taken():
        raise AssertionError("the run must not begin")


def test_a_run_clears_what_one_left_that_was_killed_while_it_took_the_folder(tmp_path):
    (tmp_path / ".run.json.cluster-7.12.tmp").write_text("{")
    folder = RunFolder(tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={})
    with folder.taken():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_options_that_only_one_of_two_runs_has_are_told(tmp_path):
    folder = RunFolder(tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={})
    old = {**folder.run, "training": {**folder.run["training"], "momentum": 0.9}}
    del old["training"]["seed"]
    message = "which differs in training; seed must be none, got 0; momentum must be 0.9, got none; give another"
    with pytest.raises(ValueError, match=message):
        folder.check_same(old, tmp_path)


def test_damaged_starts_of_a_fold_are_named_as_such(tmp_path):
    decides = {"run": "x"}
    job = RunFolder(
        tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides=decides, only=["fold0"]
    )
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "starts.json").write_text("{")
    with pytest.raises(ValueError, match=r"fold0/starts.json: must hold the starts of a fold"):
        job.record(threads=1)


@pytest.mark.parametrize("name", ["predictions.csv", "report.html", "fold1/student.json", "final/student.csv"])
@pytest.mark.parametrize("only", [None, ["fold1"]])
def test_files_that_a_new_run_would_replace_are_refused_by_name(tmp_path, name, only):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    folder = RunFolder(tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={}, only=only)
    folders = [tmp_path / "fold0", tmp_path / "fold1"]
    if only and name.startswith("final"):
        folder.check_files([], folders)  # which a job of folds does not write
        return
    with pytest.raises(FileExistsError, match=rf"{name}: is there already; name another folder$"):
        folder.check_files([], folders)


def test_a_new_run_that_fails_before_its_first_epoch_leaves_none_of_its_files(tmp_path):
    def folder() -> RunFolder:
        found = RunFolder(tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={})
        found.check_files([], [tmp_path / "fold0"])
        return found

    def begin() -> None:
        with folder().taken():
            (tmp_path / "fold0").mkdir()
            (tmp_path / "fold0" / "student.csv").touch()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        begin()
    assert not list(tmp_path.iterdir())
    folder()


def test_a_job_is_no_stranger_to_the_jobs_of_other_folds(tmp_path):
    def job(fold: str) -> RunFolder:
        found = RunFolder(
            tmp_path, "grading", TASKS["grading"], TrainingOptions(), resume=False, decides={}, only=[fold]
        )
        found.check_files([], [tmp_path / "fold0", tmp_path / "fold1"])
        return found

    with job("fold0").taken():
        (tmp_path / "fold0" / "student.json").touch()
    with job("fold1").taken():
        pass
    with pytest.raises(FileExistsError, match=r"fold0/student\.json: is there already"):
        job("fold0")
