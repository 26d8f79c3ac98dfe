"""Models on disk: weights as safetensors beside a JSON file from which the model is built again."""

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from .._files import replacing
from ..data.expression import ExpressionPipeline
from ..data.slide_reading import SlideReading
from ..models import GeneNetwork, Student, Teacher
from ..tasks import KINDS, Task, task_from_state

_MODELS: dict[str, Callable[..., nn.Module]] = {"teacher": Teacher, "student": Student, "genes": GeneNetwork}
_FORMAT = 1


class SavedModel(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: model in evaluation mode.
        task: task that it was trained for, None if the checkpoint does not say.
        reading: how the bags of its training were read, None if the checkpoint does not say.
        expression: pipeline of the expression that a teacher takes, None if the checkpoint does not say.
        notes: further JSON values.
    """

    model: Student | Teacher | GeneNetwork
    task: Task | None = None
    reading: SlideReading | None = None
    expression: ExpressionPipeline | None = None
    notes: Mapping[str, Any] = MappingProxyType({})


def save_model(
    path: str | Path,
    model: Student | Teacher | GeneNetwork,
    *,
    task: Task | None = None,
    reading: SlideReading | None = None,
    expression: ExpressionPipeline | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``path``.safetensors and ``path``.json; each appears whole or not at all, the JSON last.

    With ``task`` and ``reading``, a student is fit for :func:`~disentangled_mil.train.predict_slides`.

    Args:
        path: path of the files without suffix.
        model: model to save.
        task: task for which it was trained.
        reading: how slides are read, and from which encoder and magnification they come.
        expression: fitted pipeline of the expression that a teacher or a network on genes takes.
        notes: further JSON values.

    Raises:
        OSError: the files cannot be written.
        TypeError: the model is of another class, or was built from objects that JSON does not have.
        ValueError: the task does not fit the model's outputs or link, or ``reading`` names another magnification.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil import Classification, Student
        >>> from disentangled_mil.data import SlideReading, TileFacts
        >>> from disentangled_mil.train import load_model, save_model
        >>> student = Student(1024, 2, magnifications=["20x"], dim=16, heads=2, groups=2, dim_head=8)
        >>> path = Path(tempfile.mkdtemp()) / "mine"
        >>> reading = SlideReading(tiles={"20x": TileFacts("uni_v1", 1024, magnification=20)})
        >>> save_model(path, student, task=Classification(["MSI", "MSS"]), reading=reading)
        >>> load_model(path).task
        Classification(classes=('MSI', 'MSS'), class_weight=None)
    """
    kind = next((name for name, known in _MODELS.items() if type(model) is known), None)
    if kind is None:
        raise TypeError(f"model must be a Student, Teacher or GeneNetwork, got {type(model).__name__}")
    _check_task(task, model)
    if reading is not None and not isinstance(model, GeneNetwork):
        reading.check_magnifications(model.magnifications)
    path = Path(path)
    description = {
        "format": _FORMAT,
        "model": kind,
        "arguments": model.arguments,
        **{
            key: part.state()
            for key, part in (("task", task), ("reading", reading), ("expression", expression))
            if part is not None
        },
        "notes": dict(notes),
    }
    text = _json(description)
    path.parent.mkdir(parents=True, exist_ok=True)
    description_path, weights_path = _files(path)
    with replacing(weights_path) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        temporary.write_bytes(save(tensors))  # save_file hides errors of the disk, and the file from other users
    with replacing(description_path) as temporary:
        temporary.write_text(text)


def load_model(path: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS) -> SavedModel:
    """Build a saved model in evaluation mode.

    Args:
        path: path of the JSON, of the weights, or of both without suffix.
        kinds: class of every kind of task.

    Returns:
        The model, and what was saved with it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no checkpoint of this package, or weights and description disagree.

    Example:
        See :func:`save_model`.
    """
    path = Path(path)
    if path.suffix in (".json", ".safetensors"):
        path = path.with_suffix("")
    description_path, weights_path = _files(path)
    for file in (description_path, weights_path):
        if not file.is_file():
            named = f"; {path} is a folder, name a checkpoint in it" if path.is_dir() else ""
            raise FileNotFoundError(f"{file}: no such file{named}")
    description = _read_description(description_path)
    kind = description["model"]
    try:
        model = _MODELS[kind](**description["arguments"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{description_path}: arguments must be those of a model {kind!r}: {error}") from error
    try:
        model.load_state_dict(load_file(weights_path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{weights_path}: does not hold the weights that {description_path.name} describes: {reason}"
        ) from error
    saved = SavedModel(cast(Student, model.eval()), notes=description["notes"])
    rebuild: dict[str, Callable[[Any], Any]] = {
        "task": lambda state: task_from_state(state, kinds),
        "reading": SlideReading.from_state,
        "expression": ExpressionPipeline.from_state,
    }
    parts = {}
    for key in rebuild.keys() & description.keys():
        try:
            parts[key] = rebuild[key](description[key])
            if key == "reading" and not isinstance(model, GeneNetwork):
                parts[key].check_magnifications(model.magnifications)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{description_path}: {key} {error}") from error
    return saved._replace(**parts)


def _check_task(task: Task | None, model: Student | Teacher | GeneNetwork) -> None:
    """A task has the outputs of its model, and means the same by them."""
    if task is None:
        return
    if not isinstance(task, Task):
        raise TypeError(f"task must be a Task, got {type(task).__name__}")
    for name, wanted in (("outputs", task.outputs), ("link", task.link)):
        if model.arguments.get(name, wanted) != wanted:
            raise ValueError(f"task must have the {name} of the model, {model.arguments[name]!r}, got {wanted!r}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null."""
    with replacing(path) as temporary:
        temporary.write_text(_json(content))


def save_progress(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished training, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(dict(state), content)  # given a path, it would hide errors of the disk
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_progress(path: Path, device: str) -> dict[str, Any]:
    """Read the state of an unfinished training.

    Args:
        path: file of :func:`save_progress`.
        device: device of the tensors.

    Returns:
        The state.

    Raises:
        ValueError: the file is not readable.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be resumed from; delete it to train this stage anew") from error
    return state


def _files(path: Path) -> tuple[Path, Path]:
    """Description and weights of a model; a dot in its name starts no suffix."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.safetensors")


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be JSON: {error}") from error
    if (
        not isinstance(description, dict)
        or description.get("format") != _FORMAT
        or description.get("model") not in tuple(_MODELS)
        or not isinstance(description.get("arguments"), dict)
        or not isinstance(description.get("notes"), dict)
    ):
        raise ValueError(
            f"{path}: must describe a model ({', '.join(_MODELS)}) in format {_FORMAT} with its arguments and notes, "
            f"got {sorted(description) if isinstance(description, dict) else type(description).__name__}"
        )
    return description


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(content: Any) -> Any:
    """The content with None for NaN, which JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
