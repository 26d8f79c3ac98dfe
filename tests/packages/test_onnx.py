"""A student in onnxruntime predicts what it predicts in PyTorch. Needs the extra ``onnx``."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil import Bag, Classification, Student
from disentangled_mil.deploy import export_onnx
from disentangled_mil.deploy.onnx_file import OPSET
from disentangled_mil.train import load_model, save_model
from tests.deploy.test_student_graph import SMALL, counts
from tests.support.placed import placed_samples

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "onnx.md"
CASES = {
    "grid, table": (("20x",), True, {}),
    "grid, exact, few keys, two magnifications": (("10x", "20x"), True, {"bias": "exact", "max_keys": 5}),
    "set": (("20x",), False, {"max_keys": 5, "linear": 0.5}),
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    names, coordinates, options = CASES[request.param]
    torch.manual_seed(0)
    student = Student(6, 3, magnifications=names, **SMALL, **options).eval()
    path = export_onnx(student, tmp_path_factory.mktemp("onnx") / "student.onnx", sets=not coordinates)
    return student, onnxruntime.InferenceSession(path), coordinates


@settings(max_examples=100)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_onnxruntime_predicts_as_pytorch_does(exported, data, seed):
    student, session, coordinates = exported
    numbers = data.draw(counts(len(student.magnifications)))
    bags, tensors = placed_samples(student, numbers, seed, coordinates=coordinates)
    logits, gate = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    with torch.no_grad():
        expected = student(bags)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(gate, expected.gate.numpy())


def test_program_of_the_page_predicts_without_pytorch(tmp_path):
    (program,) = re.findall(r"^<!-- program -->\n```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) <= 25
    (tmp_path / "torch.py").write_text("raise ImportError('PyTorch must not be needed')\n")
    (tmp_path / "predict.py").write_text(program)
    torch.manual_seed(0)
    student, task = Student(6, 3, magnifications=["20x"], **SMALL).eval(), Classification(["a", "b", "c"])
    save_model(tmp_path / "student", student, task=task)
    export_onnx(tmp_path / "student.json", tmp_path / "student.onnx")
    features = torch.randn(50, 6)
    coords = 448 * torch.stack([torch.arange(50) % 9, torch.arange(50) // 9], dim=-1)
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file["features"], file["coords"] = features.numpy(), coords.numpy()
    done = subprocess.run(
        [sys.executable, "predict.py", "student.onnx", "20x=slide.h5=448"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = student({"20x": Bag.from_slide(features, coords, step=448)}).logits.softmax(1)[0]
    np.testing.assert_allclose(json.loads(done.stdout), expected.numpy(), atol=1e-4)
    (standard,) = (used for used in onnx.load(tmp_path / "student.onnx").opset_import if not used.domain)
    assert standard.version == OPSET
    described = onnxruntime.InferenceSession(tmp_path / "student.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(described["disentangled_mil"])["task"] == load_model(tmp_path / "student").task.state()
