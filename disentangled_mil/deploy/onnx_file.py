"""Students as ONNX files, which predict without PyTorch."""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_type
from .._extras import naming_extra
from .._files import check_outputs, replacing
from ..models import Student
from ..nn import ITA, CellCenters, DeformableCrossAttention
from ..ops.plain import MOST_PROTOTYPES, PlainOperators
from ..tasks import KINDS
from ..train.checkpoint import SavedModel, load_model
from ..train.saved_students import load_students
from .student_graph import StudentGraph, StudentResult

_BAGS, _PATCHES = 2, 12  # of the example that is traced


class _Plain(nn.Module):
    """A graph whose operators are PyTorch's own."""

    def __init__(self, graph: StudentGraph) -> None:
        super().__init__()
        self.inside = graph

    def forward(self, *tensors: Tensor) -> StudentResult:
        with PlainOperators():
            result: StudentResult = self.inside(*tensors)
        return result


def export_onnx(
    model: Student | SavedModel | str | Path, path: str | Path, *, coordinates: bool = True, overwrite: bool = False
) -> Path:
    """Write a student as one ONNX file, with weights, by the exporter that PyTorch recommends.

    Numbers of bags, of patches and of grid cells are free. Distances between patches and attention weights are dense
    matrices in ONNX, so that memory grows with the square of the number of patches.

    The inputs are those of :class:`StudentGraph`, and the outputs are ``logits`` and ``gate``. The description of a
    checkpoint (task, reading of slides, arguments) is JSON in the file's metadata, under ``disentangled_mil``.

    Args:
        model: student, what :func:`~disentangled_mil.train.load_model` returns for one, a checkpoint, or a run folder
            that holds one student (``train --refit``, or ``demo``).
        path: file to write, which ends in ``.onnx``.
        coordinates: whether bags have coordinates; without, they are sets.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there.
        ModuleNotFoundError: the extra ``onnx`` is not installed.
        OSError: a file cannot be read or written.
        TypeError: the model is no student.
        ValueError: a layer cannot be exported, and the message names it; a run folder holds several students; or the
            file has another ending.

    Example:
        See the page "Predict without PyTorch".
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":  # Files of models have other endings, so none is overwritten.
        raise ValueError(f"{path}: an exported student must end in .onnx, got {path.name!r}")
    check_outputs([path], [], overwrite=overwrite)
    saved = _saved(model)
    student = saved.model
    check_type("model", student, Student, "a Student; other models need genes")
    assert isinstance(student, Student)
    _check_layers(student)
    for package in ("onnx", "onnxscript"):
        with naming_extra("onnx"):
            import_module(package)
    was_training = student.training
    graph = StudentGraph(student.eval(), coordinates=coordinates)
    examples, dynamic = _example(student, coordinates)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.export.export(_Plain(graph), examples, dynamic_shapes=(dynamic,), strict=False)
            written = torch.onnx.export(
                program,
                input_names=list(graph.inputs),
                output_names=list(StudentResult._fields),
                dynamo=True,
                verbose=False,
            )
    finally:
        student.train(was_training)
    assert written is not None
    written.model.metadata_props["disentangled_mil"] = json.dumps(_description(saved, coordinates))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        written.save(temporary)
    return path


def _saved(model: Student | SavedModel | str | Path) -> SavedModel:
    if isinstance(model, SavedModel):
        return model
    if not isinstance(model, (str, Path)):
        return SavedModel(model)
    path = Path(model)
    if not path.is_dir():
        return load_model(path)
    students = load_students(path, "auto", KINDS)
    if len(students) > 1:
        raise ValueError(
            f"{path}: must hold one student to export, got those of {len(students)} folds: name one checkpoint, "
            "or train with --refit"
        )
    return load_model(students[0].path)


def _check_layers(student: Student) -> None:
    """Refuse layers that ONNX has no formula for."""
    for name, layer in student.named_modules():
        if isinstance(layer, ITA) and layer.anchors is not None and layer.prototypes > MOST_PROTOTYPES:
            raise ValueError(
                f"{name} (ITA) cannot be exported: it must have at most {MOST_PROTOTYPES} prototypes to match, "
                f"got {layer.prototypes}"
            )
        if isinstance(layer, DeformableCrossAttention) and not isinstance(layer.positions, CellCenters):
            raise ValueError(
                f"{name} (DeformableCrossAttention) cannot be exported: its positions must be CellCenters, "
                f"got {type(layer.positions).__name__}"
            )


def _example(student: Student, coordinates: bool) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Tensors that are traced, and which of their sizes are free."""
    bags = torch.export.Dim("bags", min=1)
    tensors: list[Tensor] = []
    dynamic: list[dict[int, Any]] = []
    for name in student.magnifications:
        free = {0: bags, 1: torch.export.Dim(f"patches_{name}", min=1)}
        index = torch.arange(_PATCHES, dtype=torch.float64)
        tensors += [torch.zeros(_BAGS, _PATCHES, student.arguments["features"]), torch.ones(_BAGS, _PATCHES) > 0]
        dynamic += [free, free]
        if coordinates:
            tensors += [torch.stack([index % 4, index // 4], dim=-1).repeat(_BAGS, 1, 1), torch.ones(_BAGS).double()]
            dynamic += [free, {0: bags}]
    return tuple(tensors), tuple(dynamic)


def _description(saved: SavedModel, coordinates: bool) -> dict[str, Any]:
    """What a reader of the file needs to know, as a checkpoint says it."""
    parts = {"task": saved.task, "reading": saved.reading}
    return {
        "arguments": saved.model.arguments,
        "coordinates": coordinates,
        **{key: part.state() for key, part in parts.items() if part is not None},
        "notes": dict(saved.notes),
    }
