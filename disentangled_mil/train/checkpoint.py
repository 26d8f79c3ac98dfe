"""Models on disk: weights as safetensors beside a JSON file from which the model is built again.

The JSON holds the SHA-256 of the weights and of itself, and a state of training begins with that of the rest. So a
damaged file, or a description beside the weights of another model, is refused.

New weights wait beside the old ones, as ``NAME.safetensors.new``, until the JSON is replaced. Then they take their
place. So the JSON has its weights in one of the two files at every moment, and a save that is killed leaves the old
model or the new one.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .._checks import as_path, check_mapping, check_type
from .._errors import FileError, reading
from .._files import json_digest, read_json, rename, replacing
from .._schema import check_state
from ..data.expression import ExpressionPipeline
from ..data.slide_reading import SlideReading
from ..models import GeneNetwork, Student, Teacher
from ..tasks import KINDS, Task, task_from_state

Model: TypeAlias = Student | Teacher | GeneNetwork
_MODELS: dict[str, type[Model]] = {"teacher": Teacher, "student": Student, "genes": GeneNetwork}
_FORMAT = 1
_SCHEMA = {"format": int, "model": str, "arguments": dict, "notes": dict, "weights_sha256": str, "sha256": str}
_PARTS = {"task": dict, "reading": dict, "expression": dict}
_HUGE = 1 << 31
_STATE = "disentangled_mil training state, SHA-256 "


class SavedModel(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: model in evaluation mode.
        task: task that it was trained for, None if the checkpoint does not say.
        reading: options with which the bags of its training were read; None if the checkpoint does not say.
        expression: pipeline of the expression that a teacher takes, None if the checkpoint does not say.
        notes: further JSON values.
    """

    model: Model
    task: Task | None = None
    reading: SlideReading | None = None
    expression: ExpressionPipeline | None = None
    notes: Mapping[str, Any] = MappingProxyType({})


def save_model(
    path: str | Path,
    model: Model,
    *,
    task: Task | None = None,
    reading: SlideReading | None = None,
    expression: ExpressionPipeline | None = None,
    notes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write ``path``.safetensors and ``path``.json.

    A save that fails, or is killed, leaves the old model or the new one. After a kill the weights may be in
    ``path``.safetensors.new, where :func:`load_model` finds them; the next save tidies up.

    The JSON holds the SHA-256 of the weights and of its own content, which :func:`load_model` compares.

    With ``task`` and ``reading``, a student is fit for :func:`~disentangled_mil.train.predict_slides`.

    Args:
        path: path of the files without suffix.
        model: model to save.
        task: task for which it was trained.
        reading: options of reading slides, with their encoder and magnification.
        expression: fitted pipeline of the expression that a teacher or a network on genes takes.
        notes: further JSON values.

    Raises:
        OSError: the files cannot be written.
        TypeError: the model is of another class, or was built from objects that JSON does not have.
        ValueError: the task does not fit the model's outputs or link, ``reading`` names another magnification, or a
            weight is not finite.

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
    path = as_path("path", path)
    for name, part, kinds in (("task", task, Task), ("reading", reading, SlideReading)):
        if part is not None:
            check_type(name, part, kinds, f"a {kinds.__name__} or None")
    if expression is not None:
        check_type("expression", expression, ExpressionPipeline, "an ExpressionPipeline or None")
    check_mapping("notes", notes)
    _check_task(task, model)
    if reading is not None and not isinstance(model, GeneNetwork):
        reading.check_magnifications(model.magnifications)
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
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _check_finite(tensors)
    weights = save(tensors)
    content = json.loads(_json({**description, "weights_sha256": hashlib.sha256(weights).hexdigest()}))
    text = _json({**content, "sha256": json_digest(content)})
    path.parent.mkdir(parents=True, exist_ok=True)
    description_path, weights_path = _files(path)
    _settle(description_path, weights_path)
    try:
        with replacing(_waiting(weights_path), name=weights_path) as temporary:
            temporary.write_bytes(weights)  # save_file hides errors of the disk, and the file from other users
        with replacing(description_path) as temporary:
            temporary.write_text(text)
    finally:
        _settle(description_path, weights_path)


def load_model(path: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS) -> SavedModel:
    """Build a saved model in evaluation mode.

    Args:
        path: path of the JSON, of the weights, or of both without suffix.
        kinds: class of every kind of task.

    Returns:
        The model, and what was saved with it.

    Raises:
        FileNotFoundError: a file is missing.
        FileError: a file is no checkpoint of this package, is damaged, or belongs to another model.

    Example:
        See :func:`save_model`.
    """
    path = as_path("path", path)
    check_mapping("kinds", kinds)
    description_path, weights_path = checkpoint_files(path)
    waiting = _waiting(weights_path)
    for file, other in ((description_path, None), (weights_path, waiting)):
        if not file.is_file() and not (other and other.is_file()):
            folder = file.with_suffix("")
            named = f"; {folder} is a folder, name a checkpoint in it" if folder.is_dir() else ""
            raise FileNotFoundError(f"{file}: no such file{named}")
    with reading(description_path):
        description = _read_description(description_path)
    digest = description["weights_sha256"]
    content = waiting.read_bytes() if _digest(waiting) == digest else weights_path.read_bytes()
    with reading(weights_path):
        weights = _weights(content, digest, description_path.name)
    with reading(description_path):
        model = _built(description, weights, weights_path)
        parts = _parts(description, model, kinds)
    return SavedModel(model.eval(), notes=description["notes"], **parts)


def checkpoint_files(path: str | Path) -> tuple[Path, Path]:
    """Description and weights of a saved model.

    Args:
        path: path of the JSON, of the weights, or of both without suffix.

    Returns:
        Paths of the JSON and of the weights.

    Example:
        >>> [file.name for file in checkpoint_files("run/student.json")]
        ['student.json', 'student.safetensors']
    """
    path = Path(path)
    return _files(path.with_suffix("") if path.suffix in (".json", ".safetensors") else path)


def _check_task(task: Task | None, model: Model) -> None:
    """A task has the outputs of its model, and means the same by them."""
    if task is None:
        return
    if not isinstance(task, Task):
        raise TypeError(f"task must be a Task, got {type(task).__name__}")
    for name, wanted in (("outputs", task.outputs), ("link", task.link)):
        if model.arguments.get(name, wanted) != wanted:
            raise ValueError(f"task must have the {name} of the model, {model.arguments[name]!r}, got {wanted!r}")


def write_json(path: str | Path, content: Mapping[str, Any], *, exclusive: bool = False) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null. Under ``exclusive``, a file that is there stays."""
    with replacing(path, exclusive=exclusive) as temporary:
        temporary.write_text(_json(content))


def save_progress(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the state of an unfinished training behind its SHA-256, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    torch.save(dict(state), file)  # given a path, it would hide errors of the disk
    content = file.getvalue()
    with replacing(path) as temporary, temporary.open("wb") as written:
        written.write(f"{_STATE}{hashlib.sha256(content).hexdigest()}\n".encode())
        written.write(content)


def load_progress(path: str | Path, device: str) -> dict[str, Any]:
    """Read the state of an unfinished training.

    Args:
        path: file of :func:`save_progress`.
        device: device of the tensors.

    Returns:
        The state.

    Raises:
        FileError: the file is not readable, or damaged.
    """
    with Path(path).open("rb") as file:
        head, content = file.readline(len(_STATE) + 65), file.read()
    try:
        if head != f"{_STATE}{hashlib.sha256(content).hexdigest()}\n".encode():
            raise ValueError("it must begin with the SHA-256 of its content")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        raise FileError(f"{path}: cannot be resumed from; delete it to train this stage anew", path) from error
    return state


def _files(path: Path) -> tuple[Path, Path]:
    """Description and weights of a model; a dot in its name starts no suffix."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.safetensors")


def _waiting(weights: Path) -> Path:
    """Where new weights wait for their description."""
    return weights.with_name(f"{weights.name}.new")


def _digest(path: Path) -> str | None:
    """The SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _settle(description: Path, weights: Path) -> None:
    """Let waiting weights take their place if the description is theirs, and remove them if it is not."""
    waiting = _waiting(weights)
    if not waiting.is_file():
        return
    try:
        described = read_json(description, "describe a model").get("weights_sha256")
    except (FileNotFoundError, FileError):
        described = None
    if _digest(waiting) == described:
        rename(waiting, weights)
    else:
        waiting.unlink()


def _read_description(path: Path) -> dict[str, Any]:
    """The description as it was written."""
    description = read_json(path, "be JSON that describes a model")
    if "sha256" not in description and description.get("format") == _FORMAT:
        raise FileError("must have the key 'sha256' of its content, got none; save the model again", key="sha256")
    check_state(description, _SCHEMA, _PARTS)
    for key, known in (("format", (_FORMAT,)), ("model", tuple(_MODELS))):
        if description[key] not in known:
            names = ", ".join(map(repr, known))
            raise FileError(f"{key} must be one of {names}, got {description[key]!r}", key=key)
    return description


def _weights(content: bytes, digest: str, description: str) -> dict[str, torch.Tensor]:
    """The tensors in a file of weights, which must be the one that its description was written with."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise FileError(
            f"does not hold the weights that {description} describes: the SHA-256 must be {digest:.12}..., got "
            f"{found:.12}...; it is damaged or belongs to another model"
        )
    try:
        weights = load(content)
    except (SafetensorError, ValueError, LookupError) as error:
        raise FileError(f"does not hold the weights that {description} describes: {error}") from error
    _check_finite(weights)
    return weights


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Weights that are not finite predict nothing."""
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"weights must be finite, got NaN or infinity in {name}")


def _built(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path) -> Model:
    """The model of a description with its weights."""
    kind, arguments = description["model"], description["arguments"]
    try:
        # A model without storage is compared with the weights first, so no argument asks for more memory than those.
        with torch.device("meta"):
            skeleton = _MODELS[kind](**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, LookupError) as error:
        text = str(error).partition("\n")[0][:200]  # The C++ code of PyTorch adds its frames.
        named = re.match(r"\w+", text)
        place = named[0] if named and named[0] in arguments else next(_huge(arguments), None)
        key = f"arguments.{place}" if place else "arguments"
        if place and not text.startswith(place):
            text = f"{place} is too large: {text}"
        raise FileError(f"arguments must be those of a model {kind!r}: {text}", key=key) from error
    try:
        skeleton.load_state_dict(weights, assign=True)
        model = _MODELS[kind](**arguments)
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]  # It names every tensor.
        raise FileError(f"{path}: does not hold the weights that its description describes: {reason}", path) from error
    return model


def _huge(value: object, place: str = "") -> Iterator[str]:
    """Where JSON values hold whole numbers that are no size of a tensor."""
    if isinstance(value, int) and abs(value) >= _HUGE:
        yield place
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _huge(inner, f"{place}.{key}".lstrip("."))


def _parts(description: Mapping[str, Any], model: Model, kinds: Mapping[str, type[Task]]) -> dict[str, Any]:
    """Task, reading and expression of a description, and the check that nothing in it was changed."""
    parts: dict[str, Any] = {}
    if "task" in description:
        with reading(key="task"):
            parts["task"] = task_from_state(description["task"], kinds)
            _check_task(parts["task"], model)
    if "reading" in description:
        with reading(key="reading"):
            parts["reading"] = SlideReading.from_state(description["reading"])
            if not isinstance(model, GeneNetwork):
                parts["reading"].check_magnifications(model.magnifications)
    if "expression" in description:
        with reading(key="expression"):
            parts["expression"] = ExpressionPipeline.from_state(description["expression"])
    content = {key: value for key, value in description.items() if key != "sha256"}
    if description["sha256"] != json_digest(content):
        raise FileError(
            "must match its SHA-256, got another content than was written; save the model again", key="sha256"
        )
    return parts


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(content: Any) -> Any:
    """The content with None for NaN, which JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
