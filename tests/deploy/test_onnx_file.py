"""What cannot be exported, and what is missing, is named. The files themselves are tested in ``tests/packages``."""

import sys

import pytest
import torch

from disentangled_mil import FileError, Student, Teacher
from disentangled_mil.cli import main
from disentangled_mil.data import SlideReading
from disentangled_mil.deploy import export_onnx
from disentangled_mil.models.released import ReleasedPositions
from disentangled_mil.train import SavedModel, save_model
from tests.deploy.test_student_graph import SMALL


def test_layers_without_a_formula_are_named(tmp_path):
    many = Student(6, 3, magnifications=["20x"], subspaces=list("abcdef"), **SMALL)
    with pytest.raises(ValueError, match=r"branches.20x.aggregate \(ITA\) cannot be exported: .* at most 5 .* got 6"):
        export_onnx(many, tmp_path / "student.onnx")
    released = Student(
        6, 3, magnifications=["20x"], positions=ReleasedPositions(), bias="exact", max_keys=None, **SMALL
    )
    with pytest.raises(ValueError, match=r"branches.20x.attend \(DeformableCrossAttention\) cannot be exported"):
        export_onnx(released, tmp_path / "student.onnx")


def test_no_other_file_is_written_over(tmp_path):
    student = Student(6, 2, magnifications=["20x"], **SMALL)
    path = tmp_path / "student.onnx"
    path.touch()
    with pytest.raises(FileExistsError, match=r"student.onnx: is there already"):
        export_onnx(student, path)
    with pytest.raises(ValueError, match=r"student.json: an exported student must end in .onnx"):
        export_onnx(student, path.with_suffix(".json"))


def test_the_reading_of_a_checkpoint_decides_about_sets_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # so that nothing is exported
    student = Student(6, 2, magnifications=["20x"], **SMALL)
    placed = SavedModel(student, reading=SlideReading(max_tokens={"20x": 9}, drop_augmented=True))
    with pytest.raises(
        ValueError, match=r"^sets must be left out: the student was trained with the coordinates of 20x$"
    ):
        export_onnx(placed, tmp_path / "a.onnx", sets=True)
    message = "trained on at most 9 tiles of a slide at 20x, no augmented tiles; give the exported one the same"
    with pytest.warns(UserWarning, match=message), pytest.raises(ModuleNotFoundError):
        export_onnx(placed, tmp_path / "a.onnx")
    with pytest.raises(ModuleNotFoundError):
        export_onnx(SavedModel(student, reading=SlideReading(sets=("20x",))), tmp_path / "a.onnx", sets=True)


def test_only_students_are_exported(tmp_path):
    with pytest.raises(TypeError, match="model must be a Student"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "student.onnx")
    save_model(tmp_path / "teacher", Teacher(6, {"tumor": 5}, 2, magnifications=["20x"], selection_heads=2, **SMALL))
    with pytest.raises(FileError, match=r"teacher: must hold a student, got a Teacher, which needs genes$"):
        export_onnx(tmp_path / "teacher", tmp_path / "student.onnx")


def test_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    save_model(tmp_path / "student", Student(6, 3, magnifications=["20x"], **SMALL))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(tmp_path / "student.json"), "--out", str(tmp_path / "student.onnx")]) == 2
    assert "pip install 'disentangled_mil[onnx]'" in capsys.readouterr().err


def test_absent_checkpoint_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path / "absent.json"), "--out", str(tmp_path / "student.onnx")]) == 2
    assert "absent.json: no such file" in capsys.readouterr().err
