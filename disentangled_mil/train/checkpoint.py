"""Models on disk: weights as safetensors beside a JSON file from which the model is built again."""

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from .._files import replacing
from ..models import GeneNetwork, Student, Teacher

_MODELS: dict[str, Callable[..., nn.Module]] = {"teacher": Teacher, "student": Student, "genes": GeneNetwork}
_FORMAT = 1


def save_model(
    path: str | Path, model: nn.Module, kind: str, arguments: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Write ``path``.safetensors and ``path``.json; each appears whole or not at all, the JSON last.

    Args:
        path: path of the files without suffix.
        model: model to save.
        kind: kind of the model, ``"teacher"``, ``"student"`` or ``"genes"``.
        arguments: constructor arguments of the model.
        extra: further JSON values, such as the states of the task and of the expression pipeline.

    Raises:
        OSError: the files cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    description_path, weights_path = _files(path)
    with replacing(weights_path) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        temporary.write_bytes(save(tensors))  # save_file hides errors of the disk, and the file from other users
    description = {"format": _FORMAT, "model": kind, "arguments": dict(arguments), **extra}
    write_json(description_path, description)


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a saved model in evaluation mode, and return it with its description.

    Args:
        path: path of the JSON, of the weights, or of both without suffix.

    Returns:
        The model and its description.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no checkpoint of this package, or weights and description disagree.
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
    return model.eval(), description


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


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
    ):
        raise ValueError(
            f"{path}: must describe a model ({', '.join(_MODELS)}) in format {_FORMAT} with its arguments, "
            f"got {sorted(description) if isinstance(description, dict) else type(description).__name__}"
        )
    return description


def _plain(content: Any) -> Any:
    """The content with None for NaN, which JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
