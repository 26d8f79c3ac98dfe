"""Plain values, as JSON has them, checked against a schema of Python types."""

import math
from collections.abc import Mapping
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin

from ._checks import missing_key, unknown_key
from ._errors import FileError

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", type(None): "null"}
_LARGEST = 2**63  # Tensors hold no larger whole numbers.


def check_state(
    state: object, schema: Mapping[str, Any], optional: Mapping[str, Any] = MappingProxyType({}), *, key: str = ""
) -> dict[str, Any]:
    """Check an object: it has the keys of the schema and no other, and every value is of its type.

    Args:
        state: object, which comes from a file.
        schema: type by key: ``str``, ``bool``, ``int``, ``float`` (finite, also a whole number), ``None``, ``list[X]``,
            ``tuple[X, Y]`` for a list of this length, ``dict[str, X]``, ``dict`` for any object, or ``X | Y``.
        optional: types of keys that may be absent.
        key: key of the object, which stands before others in errors.

    Returns:
        The object.

    Raises:
        FileError: a key is missing or unknown, or a value has another type; the error knows the key.

    Example:
        >>> schema = {"classes": list[str], "class_weight": list[float] | None}
        >>> check_state({"classes": ["low", "high"], "class_weight": [1, 0.5]}, schema)["class_weight"]
        [1, 0.5]
        >>> check_state({"classes": ["low", 3], "class_weight": None}, schema)
        Traceback (most recent call last):
        disentangled_mil._errors.FileError: classes[1] must be text, got 3
    """
    if not isinstance(state, Mapping):
        raise FileError(f"{key} must be an object, got {_shown(state)}".lstrip(), key=key or None)
    known, dot = {**schema, **optional}, "." if key else ""
    for name in schema:
        if name not in state:
            others = [str(given) for given in state if given not in known]
            words = missing_key(name, others, listed=", ".join(map(repr, state)))
            raise FileError(f"{key} {words}".lstrip(), key=f"{key}{dot}{name}")
    for name, value in state.items():
        if name not in known:
            raise FileError(f"{key} {unknown_key(str(name), known)}".lstrip(), key=f"{key}{dot}{name}")
        _check(value, known[name], f"{key}{dot}{name}")
    return dict(state)


def _check(value: object, kind: Any, key: str) -> None:
    """Check a value and what it holds."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        kind = next((each for each in inner if _is(value, each)), kind)
        origin, inner = get_origin(kind), get_args(kind)
    if not _is(value, kind):
        raise FileError(f"{key} must be {_words(kind)}, got {_shown(value)}", key=key)
    if isinstance(value, list) and inner:
        for place, entry in enumerate(value):
            _check(entry, inner[place if origin is tuple else 0], f"{key}[{place}]")
    elif isinstance(value, dict) and inner:
        for name, entry in value.items():
            _check(entry, inner[1], f"{key}.{name}")


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of a type, whatever it holds."""
    if kind is Any:
        return True
    origin = get_origin(kind) or kind
    if origin is float:
        return type(value) in (int, float) and abs(value) < _LARGEST and math.isfinite(value)  # type: ignore[arg-type]
    if origin is int:
        return type(value) is int and abs(value) < _LARGEST
    if origin is tuple:
        return type(value) is list and len(value) == len(get_args(kind))
    return type(value) is origin


def _words(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return " or ".join(map(_words, inner))
    if origin is tuple:
        return f"a list of length {len(inner)}"
    return {list: "a list", dict: "an object"}.get(origin) or _WORDS[origin]


def _shown(value: object) -> str:
    """A value, in one line at most."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
