"""Folders to share: one checkpoint, a card that says what is known and what is not, and the way back."""

import json
import sys
import types

import pytest
import torch

from disentangled_mil import Bag, Classification, DiscreteSurvival, Student, Teacher
from disentangled_mil.data import SlideReading, TileFacts
from disentangled_mil.deploy import CardTexts, from_pretrained, save_pretrained
from disentangled_mil.tasks import KINDS
from disentangled_mil.train import SavedModel, load_model, save_model
from disentangled_mil.train.saved_students import load_students, one_checkpoint
from tests.deploy.test_student_graph import SMALL
from tests.support.runs import class_folds, write_run

TASK = Classification(["high", "low"])
READING = SlideReading(tiles={"20x": TileFacts("uni|v1", 6, magnification=20)})


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student(6, 2, magnifications=["20x"], **SMALL).eval()


@pytest.fixture
def hub(monkeypatch):
    """A Hub whose repositories are folders, and the arguments with which it was called."""
    calls = []
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def serve(folder):
        module.snapshot_download = lambda repository, **options: calls.append((repository, options)) or str(folder)
        return calls

    return serve


def test_what_was_saved_comes_back_from_the_folder(student, tmp_path):
    folder = save_pretrained(tmp_path / "mine", SavedModel(student, TASK, READING, notes={"fold": 1}))
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    found = from_pretrained(folder)
    assert found.task is not None
    assert found.task.state() == TASK.state()
    assert (found.reading, found.notes) == (READING, {"fold": 1})
    slide = {"20x": Bag.from_slide(torch.randn(9, 6))}
    assert torch.equal(found.model(slide).logits, student(slide).logits)


def test_files_that_are_there_are_kept_unless_they_may_be_replaced(student, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README.md: is there already"):
        save_pretrained(tmp_path, student)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    save_pretrained(tmp_path, student, overwrite=True)
    assert isinstance(from_pretrained(tmp_path).model, Student)


def test_teachers_are_shared_as_well(tmp_path):
    teacher = Teacher(6, {"tumor": 5}, 2, magnifications=["20x"], selection_heads=2, **SMALL)
    assert isinstance(from_pretrained(save_pretrained(tmp_path, teacher)).model, Teacher)
    assert "predicts from slides and gene expression" in (tmp_path / "README.md").read_text()


def test_card_says_what_is_not_stated(student, tmp_path):
    text = (save_pretrained(tmp_path, student) / "README.md").read_text()
    sections = dict(part.split("\n\n", 1) for part in text.split("\n## ")[1:])
    assert "Task: not stated." in sections["Model"]
    assert "Source of the training data: not stated." in sections["Data"]
    assert "Encoder and magnification of the tiles: not stated." in sections["Data"]
    for title in ("Metrics", "Limits", "License", "Intended use"):
        assert sections[title].startswith("Not stated.")
    assert "Nobody has approved it for diagnosis or treatment." in sections["Intended use"]
    assert "license:" not in text.split("---")[1]


def test_card_takes_metrics_with_intervals_from_the_run(student, tmp_path):
    run = write_run(tmp_path / "run", TASK, class_folds(["high", "low"]), models=("linear", "student"))
    save_model(run / "student", student, task=TASK, reading=READING)
    texts = CardTexts("120 resections", "Ranking of slides", "One hospital", "cc-by-nc-4.0")
    text = (save_pretrained(tmp_path / "mine", run / "student.json", run=run, texts=texts) / "README.md").read_text()
    (compared,) = json.loads((run / "metrics.json").read_text())["gains"].values()
    found = compared["models"]["student"]
    row = f"| {found['value']:.3f} | {found['low']:.3f} to {found['high']:.3f} |"
    assert f"| student from scratch (slides) {row}" in text
    assert "48 patients: high 24, low 24." in text
    assert "This folder holds the model `student` of the run." in text
    assert "| 20x | uni\\|v1 | 6 | 20 | not stated |" in text
    assert all(given in text for given in ("120 resections", "Ranking of slides", "One hospital"))
    assert 'license: "cc-by-nc-4.0"' in text.split("---")[1]


def test_a_run_folder_gives_its_one_student_and_its_metrics(student, tmp_path):
    run = write_run(tmp_path / "run", TASK, class_folds(["high", "low"]), models=("linear", "student"))
    for folder in ("fold0", "fold1"):
        save_model(run / folder / "student", student, task=TASK, reading=READING)
    with pytest.raises(
        ValueError, match=r"run: must hold one student, got those of 2 folds; name a checkpoint such as"
    ):
        save_pretrained(tmp_path / "mine", run)
    save_model(run / "final" / "student", student, task=TASK, reading=READING)
    text = (save_pretrained(tmp_path / "mine", run) / "README.md").read_text()
    assert "This folder holds the model `student` of the run." in text
    assert text == (save_pretrained(tmp_path / "b", run / "final" / "student.json", run=run) / "README.md").read_text()


def test_every_path_of_a_model_is_understood_by_predict_explain_and_export_alike(student, tmp_path):
    run = write_run(tmp_path / "run", TASK, class_folds(["high", "low"]), models=("linear", "student"))
    save_model(run / "fold0" / "student", student, task=TASK, reading=READING)
    shared = save_pretrained(tmp_path / "shared", run / "fold0" / "student.json")
    places = ["run/fold0", "run/fold0/student", "run/fold0/student.json", "run/fold0/student.safetensors", "shared"]
    for number, place in enumerate(places):
        for path in (tmp_path / place, str(tmp_path / place)):
            (found,) = load_students(path, "auto", KINDS)
            same = load_model(one_checkpoint(path)).model
            copy = from_pretrained(save_pretrained(tmp_path / str(number), path, overwrite=True)).model
            for model in (found.model, same, copy):
                torch.testing.assert_close(model.state_dict(), student.state_dict())
    text = (save_pretrained(tmp_path / "a", run / "fold0", run=run) / "README.md").read_text()
    assert "This folder holds the model `student` of the run." in text
    assert "## Metrics\n\nNot stated." in (shared / "README.md").read_text()


def test_run_of_another_kind_of_task_is_refused(student, tmp_path):
    run = write_run(tmp_path / "run", TASK, class_folds(["high", "low"]), models=("linear", "student"))
    other = DiscreteSurvival(torch.tensor([10.0]))
    with pytest.raises(ValueError, match="must be the run of the model, whose task is of kind 'survival', got 'class"):
        save_pretrained(tmp_path / "mine", SavedModel(student, other), run=run)
    assert not (tmp_path / "mine").exists()


def test_repository_of_the_hub_is_downloaded_without_other_files(student, tmp_path, hub):
    calls = hub(save_pretrained(tmp_path, student))
    assert isinstance(from_pretrained("lab/student", revision="v1", local_files_only=True).model, Student)
    ((repository, options),) = calls
    assert (repository, options["revision"], options["local_files_only"]) == ("lab/student", "v1", True)
    assert options["allow_patterns"] == ["model.json", "model.safetensors", "README.md"]


def test_missing_folders_and_extras_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no such folder, and no repository of the Hub \(owner/name\)"):
        from_pretrained(tmp_path / "absent" / "model")
    with pytest.raises(FileNotFoundError, match=r"model\.json: no such file"):
        from_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'disentangled_mil\[hub\]'"):
        from_pretrained("lab/student")


def test_a_folder_is_not_written_over_itself_and_a_failed_save_leaves_its_card(student, tmp_path, monkeypatch):
    folder = save_pretrained(tmp_path / "mine", student)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for model in (folder, folder / "model.json"):
        with pytest.raises(ValueError, match=r"model\.json: must be another file than .*, which is read"):
            save_pretrained(folder, model, overwrite=True)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("disentangled_mil.deploy.pretrained.save_model", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_pretrained(folder, student, texts=CardTexts(data="other data"), overwrite=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
