"""How the bags of a model are read from files, which prediction on new slides repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_flag, check_interval, check_mapping, check_texts, check_type
from .._errors import reading
from .._schema import check_state
from .slides import SlideSource

TRANSFORMS = ("none", "log")
_LOG_OFFSET = 1e-6
MISSING = ("error", "allow")
UNITS = ("slide", "patient")

_STATE = {
    "unit": str,
    "transform": str,
    "drop_augmented": bool,
    "missing": str,
    "sets": list[str],
    "max_tokens": dict[str, int],
    "tiles": dict[str, dict[str, Any]],
}
_TILES = {"encoder": str | None, "width": int | None, "magnification": float | None, "mpp": float | None}
# Models that were saved before have no such keys.
_NAMES = {"features": dict[str, str], "coords": dict[str, str]}
_SINCE = {"relative_side": float | None}


class TileFacts(NamedTuple):
    """What is known of the tiles of one magnification. None where it is not known, and then it is never compared.

    Attributes:
        encoder: name of the encoder.
        width: numbers per tile.
        magnification: objective magnification of the tiles.
        mpp: micrometers per pixel of the tiles.
        relative_side: side of the tiles over that of the smallest tiles of the same slide, where there are several
            magnifications.
    """

    encoder: str | None = None
    width: int | None = None
    magnification: float | None = None
    mpp: float | None = None
    relative_side: float | None = None

    @classmethod
    def of(cls, source: SlideSource, relative_side: float | None = None) -> "TileFacts":
        """What the files of a slide say, and what its other magnifications add."""
        return cls(source.encoder, source.width, source.magnification, source.mpp, relative_side)


@dataclass(frozen=True)
class SlideReading:
    """How slides become bags, and from which encoder and magnification they come.

    Args:
        unit: unit of a sample, ``"slide"`` or ``"patient"`` (all slides of a patient in one bag).
        transform: transform of the features: ``"none"``, or ``"log"`` for probabilities: log(x + 1e-6).
        drop_augmented: flag that leaves out augmented patches.
        missing: rule for slides without tiles at a magnification: ``"error"`` or ``"allow"``.
        sets: magnifications whose bags have no coordinates.
        max_tokens: largest number of tiles to keep, by magnification.
        tiles: encoder, width and magnification of the training tiles, by magnification.
        features: name of the features in the files, by magnification; see :func:`~.slides.read_bag`.
        coords: name of the coordinates in the files, by magnification.

    Raises:
        TypeError: a count or a width is no integer, facts of tiles are no :class:`TileFacts`, or another number of them
            is none.
        ValueError: an option is out of range.

    Example:
        >>> from disentangled_mil.data import SlideReading, TileFacts
        >>> reading = SlideReading(sets=("5x",), tiles={"20x": TileFacts("uni_v1", 1024, magnification=20)})
        >>> SlideReading.from_state(reading.state()) == reading
        True
    """

    unit: str = "slide"
    transform: str = "none"
    drop_augmented: bool = False
    missing: str = "error"
    sets: Sequence[str] = ()
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    tiles: Mapping[str, TileFacts] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    coords: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_choice("transform", self.transform, TRANSFORMS)
        check_flag("drop_augmented", self.drop_augmented)
        check_choice("missing", self.missing, MISSING)
        object.__setattr__(self, "sets", check_texts("sets", self.sets))
        check_mapping("max_tokens", self.max_tokens)
        check_mapping("tiles", self.tiles)
        for name, count in self.max_tokens.items():
            check_count(f"max_tokens[{name!r}]", count)
        for key in ("features", "coords"):
            check_mapping(key, getattr(self, key))
            for name, value in getattr(self, key).items():
                check_type(f"{key}[{name!r}]", value, str, "a name")
        for name, facts in self.tiles.items():
            if not isinstance(facts, TileFacts):
                raise TypeError(f"tiles[{name!r}] must be TileFacts, got {type(facts).__name__}")
            if facts.encoder is not None and not (isinstance(facts.encoder, str) and facts.encoder.strip()):
                raise ValueError(f"tiles[{name!r}].encoder must be the name of an encoder, got {facts.encoder!r}")
            if facts.width is not None:
                check_count(f"tiles[{name!r}].width", facts.width)
            for key in ("magnification", "mpp"):
                if (value := getattr(facts, key)) is not None:
                    check_interval(f"tiles[{name!r}].{key}", value, 0, float("inf"), open_low=True)
            if facts.relative_side is not None:
                check_interval(f"tiles[{name!r}].relative_side", facts.relative_side, 1, float("inf"))

    def check_magnifications(self, magnifications: tuple[str, ...]) -> None:
        """Check that everything is of the magnifications of a model.

        Args:
            magnifications: names of the magnifications.

        Raises:
            ValueError: another magnification is named.
        """
        for key in ("sets", "max_tokens", "tiles", "features", "coords"):
            if unknown := [name for name in getattr(self, key) if name not in magnifications]:
                raise ValueError(f"{key} must be of the magnifications {', '.join(magnifications)}, got {unknown[0]!r}")

    def state(self) -> dict[str, Any]:
        """Plain JSON values, from which :meth:`from_state` rebuilds it."""
        tiles = {name: facts._asdict() for name, facts in self.tiles.items()}
        return {**asdict(self), "sets": list(self.sets), "tiles": tiles}

    @classmethod
    def from_state(cls, state: Any) -> "SlideReading":
        """Rebuild it from its state.

        Args:
            state: plain values, for instance from a checkpoint.

        Returns:
            The reading.

        Raises:
            FileError: the state lacks a key or has an unknown one, or a value is of the wrong type or out of range.
        """
        values = check_state(state, _STATE, _NAMES)
        tiles = {
            name: TileFacts(**check_state(facts, _TILES, _SINCE, key=f"tiles.{name}"))
            for name, facts in values["tiles"].items()
        }
        with reading():
            return cls(**{**values, "tiles": tiles})


def transformed(patches: Tensor, transform: str) -> Tensor:
    """Features as a model takes them.

    Args:
        patches: stored features, not negative under ``"log"``.
        transform: one of ``TRANSFORMS``.

    Returns:
        The features; under ``"log"`` their logarithms in float32.
    """
    return torch.log(patches.float() + _LOG_OFFSET) if transform == "log" else patches
