"""Models with the methods of the Hub's mixin, without a network: the files of save_pretrained go up and come back."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from disentangled_mil import Bag, Classification, Student, Teacher
from disentangled_mil.data import SlideReading, TileFacts
from disentangled_mil.deploy import CardTexts, from_pretrained, save_pretrained
from disentangled_mil.train import SavedModel
from tests.deploy.test_student_graph import SMALL

pytest.importorskip("huggingface_hub")
import huggingface_hub

from disentangled_mil.deploy.hub import HubModel

FILES = ["README.md", "model.json", "model.safetensors"]
TASK = Classification(["high", "low"])
READING = SlideReading(tiles={"20x": TileFacts("uni_v1", 6, magnification=20)})


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student(6, 2, magnifications=["20x"], **SMALL).eval()


@pytest.fixture
def uploaded(monkeypatch, tmp_path):
    """A Hub of one repository: the folder that the mixin uploads to and downloads from, and the options of both."""
    calls = {}
    place = tmp_path / "repository"

    def create(api, **options):
        calls["create"] = options
        return SimpleNamespace(repo_id=options["repo_id"])

    def upload(api, *, folder_path, **options):
        calls["upload"] = options
        shutil.copytree(folder_path, place)
        return "https://huggingface.co/lab/student/commit/1"

    def download(repository, **options):
        calls["download"] = {"repository": repository, **options}
        return str(place)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return place, calls


def test_a_pushed_model_comes_back_with_task_and_reading(student, uploaded):
    place, calls = uploaded
    model = HubModel(SavedModel(student, TASK, READING), texts=CardTexts(limits="one scanner"))
    assert isinstance(model, huggingface_hub.ModelHubMixin)
    assert model.push_to_hub("lab/student", private=True, branch="v1").endswith("/commit/1")
    assert (calls["create"]["private"], calls["upload"]["revision"]) == (True, "v1")
    assert sorted(file.name for file in place.iterdir()) == FILES
    assert "## Limits\n\none scanner" in (place / "README.md").read_text()

    found = HubModel.from_pretrained("lab/student", revision="v1", token="secret", cache_dir=Path("cache")).model
    assert (found.task.state(), found.reading) == (TASK.state(), READING)
    slide = {"20x": Bag.from_slide(torch.randn(9, 6))}
    assert torch.equal(found.model(slide).logits, student(slide).logits)
    asked = calls["download"]
    assert (asked["repository"], asked["revision"], asked["token"]) == ("lab/student", "v1", "secret")
    assert asked["cache_dir"] == Path("cache")


def test_functions_and_mixin_read_and_write_the_same_files(tmp_path):
    teacher = Teacher(6, {"tumor": 5}, 2, magnifications=["20x"], selection_heads=2, **SMALL)
    save_pretrained(tmp_path / "function", teacher)
    HubModel.from_pretrained(tmp_path / "function").save_pretrained(tmp_path / "mixin")
    assert isinstance(from_pretrained(tmp_path / "mixin").model, Teacher)
    for name in FILES:
        assert (tmp_path / "function" / name).read_bytes() == (tmp_path / "mixin" / name).read_bytes()


def test_files_that_are_there_are_kept_unless_they_may_be_replaced(student, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README.md: is there already.*overwrite=True"):
        HubModel(student).save_pretrained(tmp_path)
    HubModel(student, overwrite=True).save_pretrained(tmp_path)
    assert "# Student" in (tmp_path / "README.md").read_text()
