"""Students as ONNX files, which predict without PyTorch."""

import json
import warnings
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import as_path, check_flag, check_type
from .._errors import FileError
from .._exit_status import work_begins
from .._extras import naming_extra
from .._files import check_outputs, replacing
from ..models import Student
from ..nn import ITA, CellCenters, DeformableCrossAttention
from ..ops.plain import MOST_PROTOTYPES, PlainOperators
from ..tasks import KINDS, Task
from ..train.checkpoint import SavedModel, load_model
from ..train.saved_students import one_checkpoint
from .student_graph import StudentGraph, StudentResult

OPSET = 23  # The newest one that the exporter of PyTorch 2.13 supports. Its default is 20.
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
    model: Student | SavedModel | str | Path,
    path: str | Path,
    *,
    sets: bool = False,
    overwrite: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> Path:
    """Write a student as one ONNX file, with weights, by the exporter that PyTorch recommends.

    The file is of ONNX opset 23. Numbers of bags, of patches and of grid cells are free. Distances between patches and
    attention weights are dense matrices in ONNX, so that memory grows with the square of the number of patches.

    The inputs are those of :class:`StudentGraph`, and the outputs are ``logits`` and ``gate``. Patches are features as
    they are stored, because the file holds the transform of the checkpoint. Tiles that the reading of a checkpoint
    leaves out (``max_tokens``, ``drop_augmented``) must be left out before; a warning says so. The description of a
    checkpoint (task, reading of slides, arguments) is JSON in the file's metadata, under ``disentangled_mil``.

    Args:
        model: student, what :func:`~disentangled_mil.train.load_model` returns for one, a checkpoint, or a run folder
            that holds one student (``train --refit``, or ``demo``).
        path: file to write, which ends in ``.onnx``.
        sets: flag for bags without coordinates. A checkpoint says itself which magnifications have none.
        overwrite: flag that allows to replace a file that is there.
        kinds: class of every kind of task.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there.
        ModuleNotFoundError: the extra ``onnx`` is not installed.
        OSError: a file cannot be read or written.
        TypeError: the model is no student.
        ValueError: a layer cannot be exported, and the message names it; a run folder holds several students; the file
            has another ending; or ``sets`` contradicts the checkpoint.

    Example:
        See the page "Predict without PyTorch".
    """
    path = as_path("path", path)
    check_flag("sets", sets)
    check_flag("overwrite", overwrite)
    if path.suffix.lower() != ".onnx":  # Files of models have other endings, so none is overwritten.
        raise ValueError(f"{path}: an exported student must end in .onnx, got {path.name!r}")
    check_outputs([path], [], overwrite=overwrite)
    saved = _saved(model, kinds)
    student = saved.model
    if isinstance(model, (str, Path)) and not isinstance(student, Student):
        raise FileError(f"{model}: must hold a student, got a {type(student).__name__}, which needs genes", model)
    check_type("model", student, Student, "a Student; other models need genes")
    assert isinstance(student, Student)
    without_places = _sets(saved, student, sets)
    transform = "none" if saved.reading is None else saved.reading.transform
    _check_layers(student)
    for package in ("onnx", "onnxscript"):
        with naming_extra("onnx"):
            import_module(package)
    was_training = student.training
    graph = StudentGraph(student.eval(), sets=without_places, transform=transform)
    examples, dynamic = _example(student, without_places)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.export.export(_Plain(graph), examples, dynamic_shapes=(dynamic,), strict=False)
            written = torch.onnx.export(
                program,
                input_names=list(graph.inputs),
                output_names=list(StudentResult._fields),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        student.train(was_training)
    assert written is not None
    written.model.metadata_props["disentangled_mil"] = json.dumps(_description(saved, without_places))
    path.parent.mkdir(parents=True, exist_ok=True)
    work_begins()
    with replacing(path) as temporary:
        written.save(temporary)
    return path


def _saved(model: Student | SavedModel | str | Path, kinds: Mapping[str, type[Task]]) -> SavedModel:
    if isinstance(model, SavedModel):
        return model
    if not isinstance(model, (str, Path)):
        return SavedModel(model)
    return load_model(one_checkpoint(model), kinds=kinds)


def _sets(saved: SavedModel, student: Student, wanted: bool) -> tuple[str, ...]:
    """The magnifications whose bags have no coordinates, and a warning of what else the checkpoint's reading does."""
    if saved.reading is None:
        return student.magnifications if wanted else ()
    reading = saved.reading
    found = tuple(name for name in student.magnifications if name in reading.sets)
    if wanted and found != student.magnifications:
        placed = next(name for name in student.magnifications if name not in found)
        raise ValueError(f"sets must be left out: the student was trained with the coordinates of {placed}")
    steps = [f"at most {most} tiles of a slide at {name}" for name, most in reading.max_tokens.items()]
    steps += ["no augmented tiles"] if reading.drop_augmented else []
    steps += ["all slides of a patient together"] if reading.unit == "patient" else []
    if steps:
        warnings.warn(f"the student was trained on {', '.join(steps)}; give the exported one the same", stacklevel=3)
    return found


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


def _example(student: Student, sets: Collection[str]) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Tensors that are traced, and which of their sizes are free."""
    bags = torch.export.Dim("bags", min=1)
    tensors: list[Tensor] = []
    dynamic: list[dict[int, Any]] = []
    for name in student.magnifications:
        free = {0: bags, 1: torch.export.Dim(f"patches_{name}", min=1)}
        index = torch.arange(_PATCHES, dtype=torch.float64)
        tensors += [torch.zeros(_BAGS, _PATCHES, student.arguments["features"]), torch.ones(_BAGS, _PATCHES) > 0]
        dynamic += [free, free]
        if name not in sets:
            tensors += [torch.stack([index % 4, index // 4], dim=-1).repeat(_BAGS, 1, 1), torch.ones(_BAGS).double()]
            dynamic += [free, {0: bags}]
    return tuple(tensors), tuple(dynamic)


def _description(saved: SavedModel, sets: Collection[str]) -> dict[str, Any]:
    """What a reader of the file needs to know, as a checkpoint says it."""
    parts = {"task": saved.task, "reading": saved.reading}
    return {
        "arguments": saved.model.arguments,
        "sets": list(sets),
        **{key: part.state() for key, part in parts.items() if part is not None},
        "notes": dict(saved.notes),
    }
