"""Encoders of tiles: any function of float tiles [B, 3, 224, 224] to features [B, D]."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from .._checks import check_count, check_floating, check_shape
from ._timm import timm_encoder
from .tiles import TILE

Colors = tuple[float, float, float]


@dataclass(frozen=True)
class Encoder:
    """An encoder, its name, and the normalization of its tiles.

    Tiles have red, green and blue between 0 and 1. The encoder gets ``(tiles - mean) / std``.

    Args:
        model: module or function from [B, 3, 224, 224] to [B, D].
        name: name that is stored beside the features.
        mean: mean of the three colors; by default that of ImageNet.
        std: standard deviation of the three colors; by default that of ImageNet.

    Example:
        >>> import torch
        >>> from disentangled_mil.extract import Encoder, encode_tiles
        >>> colors = Encoder(lambda tiles: tiles.mean((2, 3)), "mean color", (0, 0, 0), (1, 1, 1))
        >>> encode_tiles(colors, torch.full((2, 224, 224, 3), 51, dtype=torch.uint8)).tolist()[0]
        [0.2..., 0.2..., 0.2...]
    """

    model: Callable[[Tensor], Tensor]
    name: str = ""
    mean: Colors = (0.485, 0.456, 0.406)
    std: Colors = (0.229, 0.224, 0.225)


def encode_tiles(encoder: Encoder, tiles: Tensor, *, device: str | torch.device = "cpu") -> Tensor:
    """Normalize tiles and encode them.

    Args:
        encoder: encoder, whose module is on ``device``.
        tiles: colors from 0 to 255.
        device: device of the computation.

    Shape:
        ``tiles`` [B, 224, 224, 3], uint8.

    Returns:
        Features [B, D] on the CPU.

    Raises:
        TypeError: the encoder returns no floating-point tensor.
        ValueError: the encoder returns another shape.
    """
    count = check_shape("tiles", tiles, f"B {TILE} {TILE} 3")["B"]
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        colors = tiles.to(device).permute(0, 3, 1, 2).float() / 255
        features = encoder.model((colors - mean) / std)
        what = f"output of the encoder {encoder.name}"
        check_floating(what, features)
        check_shape(what, features, "B D", {"B": count})
        return features.float().cpu()


def load_encoder(spec: str, *, weights: str | Path | None = None, stage: int | None = None) -> Encoder:
    """The encoder that a text names.

    ``"timm:NAME"`` is a model of timm with its pretrained weights, its own normalization and no classifier. Any other
    ``"MODULE:FACTORY"`` is a function without arguments in a module that Python can import. It returns an
    :class:`Encoder`, or a module or function whose tiles are normalized as those of ImageNet.

    Args:
        spec: ``"timm:NAME"`` or ``"MODULE:FACTORY"``.
        weights: file of weights for timm, instead of those that it downloads.
        stage: index of a feature map of timm, which is averaged over the tile, instead of the last features. That of
            ResNet50's third stage, of width 1,024, is 3.

    Returns:
        The encoder, in evaluation mode. Its name is that which it has itself, or else ``spec``.

    Raises:
        FileNotFoundError: there is no file of weights.
        ModuleNotFoundError: timm is not installed.
        TypeError: the factory returns no encoder.
        ValueError: ``spec`` names no encoder, or ``weights`` and ``stage`` come without timm.

    Example:
        >>> from disentangled_mil.extract import load_encoder
        >>> load_encoder("uni")
        Traceback (most recent call last):
            ...
        ValueError: encoder must be timm:NAME or MODULE:FACTORY, got 'uni'
    """
    module, separator, name = spec.partition(":")
    if not (module and separator and name):
        raise ValueError(f"encoder must be timm:NAME or MODULE:FACTORY, got {spec!r}")
    if module == "timm":
        if stage is not None:
            check_count("stage", stage, minimum=0)
        file = None if weights is None else Path(weights)
        model, mean, std = timm_encoder(name, file, stage)
        words = [spec, *([f"stage {stage}"] if stage is not None else [])]
        if file is not None:  # Files of other weights may have the same name.
            words.append(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}")
        encoder = Encoder(model, ", ".join(words), mean, std)
    elif weights is not None or stage is not None:
        raise ValueError(f"weights and stage must come with an encoder timm:NAME, got {spec!r}")
    else:
        made = _factory(spec, module, name)()
        if not isinstance(made, Encoder) and not callable(made):
            raise TypeError(f"encoder {spec!r} must return an Encoder, a module or a function, got {made!r}")
        encoder = made if isinstance(made, Encoder) else Encoder(made)
    if isinstance(encoder.model, nn.Module):
        encoder.model.eval()
    return encoder if encoder.name else replace(encoder, name=spec)


def _factory(spec: str, module: str, name: str) -> Callable[[], object]:
    """The function that makes an encoder."""
    try:
        factory: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder must be MODULE:FACTORY that can be imported, got {spec!r}: {error}") from error
    if not callable(factory):
        raise ValueError(f"encoder must be MODULE:FACTORY of a function, got {spec!r}, a {type(factory).__name__}")
    return factory
