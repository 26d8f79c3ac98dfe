"""Argument errors in one style: the argument, the requirement, what came.

Checks read metadata only (types, shapes, dtypes, plain numbers), so that none waits for a GPU. The exceptions are
:func:`check_values` and :func:`check_finite`, which read tensors on the CPU, and :func:`as_number` and
:func:`as_numbers`, which read values of tables.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._torch_private import is_transformed


def check_shape(name: str, tensor: Tensor, spec: str, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Check a tensor's shape, and return the size of every letter.

    Args:
        name: name of the tensor in errors.
        tensor: tensor to check.
        spec: letters and numbers of the dimensions, for instance ``"B N C"``.
        sizes: sizes of letters that are known.

    Returns:
        The size of every letter.

    Raises:
        TypeError: ``tensor`` is not a tensor.
        ValueError: the number of dimensions or a size differs.

    Example:
        >>> check_shape("mask", torch.ones(2, 7), "B N")
        {'B': 2, 'N': 7}
        >>> check_shape("mask", torch.ones(2, 5), "B N", {"B": 2, "N": 7})
        Traceback (most recent call last):
        ValueError: mask must have shape [B, N] = [2, 7], got [2, 5]
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape [{', '.join(spec.split())}], got {type(tensor).__name__}")
    letters = spec.split()
    wanted = [int(letter) if letter.isdigit() else (sizes or {}).get(letter) for letter in letters]
    shape = list(tensor.shape)
    fits = len(shape) == len(wanted) and all(w is None or w == s for w, s in zip(wanted, shape, strict=True))
    if not fits:
        known = ", ".join(letter if w is None else str(w) for letter, w in zip(letters, wanted, strict=True))
        symbolic = ", ".join(letters)
        requirement = f"[{symbolic}]" if known == symbolic else f"[{symbolic}] = [{known}]"
        raise ValueError(f"{name} must have shape {requirement}, got {shape}")
    return dict(zip(letters, shape, strict=True))


def check_batch(name: str, tensor: Tensor) -> None:
    """Check that there is a sample for the mean of a loss."""
    if tensor.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one sample, got shape {list(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Check that something is a tensor of floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_integers(name: str, tensor: Tensor) -> None:
    """Check that a tensor has an integer dtype."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {tensor.dtype}")


def check_values(name: str, values: Tensor, requirement: str, valid: Callable[[Tensor], Tensor]) -> None:
    """Check the values [B] of a small tensor that lies on the CPU; elsewhere, or while tracing, nothing is read."""
    if not _is_readable(values):
        return
    fits = valid(values)
    if not bool(fits.all()):
        row = int(fits.int().argmin())
        raise ValueError(f"{name} must {requirement}, got {values[row].item()} at position {row}")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def as_number(value: object) -> float:
    """Read a number, or the text of a decimal number in a table.

    Python reads more than that: ``float("12_24")`` is 1224.

    Args:
        value: number or text.

    Returns:
        The number; NaN for all else.

    Example:
        >>> as_number("1.5e3"), as_number("12_24"), as_number(True)
        (1500.0, nan, 1.0)
    """
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else math.nan
    return float(value) if isinstance(value, (Real, np.bool_)) else math.nan


def as_numbers(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Read an array of real numbers or their text as float64; dates and spans of time have a unit and are refused."""
    if values.dtype.kind in "cmM":
        raise TypeError(f"{name} must hold numbers, got {values.dtype}")
    try:
        return values.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must hold numbers: {error}") from error


def check_mask(name: str, mask: Tensor, spec: str, sizes: Mapping[str, int] | None = None) -> None:
    """Check a boolean mask (True = real token) and its shape."""
    check_shape(name, mask, spec, sizes)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor (True = real token), got {mask.dtype}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Check that an option is one of its choices."""
    # Arrays and tensors compare element by element.
    if not isinstance(value, tuple({type(choice) for choice in choices})) or value not in choices:
        near = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{near}")


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """Name the known name that is nearest to an unknown one, for an error.

    Args:
        name: unknown name.
        known: known names.

    Returns:
        The question, in parentheses; empty where no name is near.

    Example:
        >>> did_you_mean("Foldr", ["folder", "step"]), did_you_mean("size", ["folder", "step"])
        (" (did you mean 'folder'?)", '')
    """
    by_folded = {str(one).casefold(): str(one) for one in known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    return f" (did you mean {by_folded[near[0]]!r}?)" if near else ""


def unknown_key(name: str, known: Iterable[str], *, more: str = "") -> str:
    """The words of an error about a key that nothing knows.

    Args:
        name: unknown key.
        known: known keys.
        more: words about what else may be there.

    Returns:
        The words after the place of the key.

    Example:
        >>> unknown_key("foldr", ["folder", "step"])
        "has the unknown key 'foldr' (did you mean 'folder'?); known are folder, step"
    """
    listed = list(known)
    return f"has the unknown key {name!r}{did_you_mean(name, listed)}; known are {', '.join(listed)}{more}"


def missing_key(name: str, given: Iterable[str], *, listed: str) -> str:
    """The words of an error about a key that must be there, and may be misspelled.

    Args:
        name: key that is missing.
        given: keys that are there and that nothing knows.
        listed: keys that are there, in words.

    Returns:
        The words after the place of the key.

    Example:
        >>> missing_key("folder", ["foldr"], listed="foldr, step")
        "must have the key 'folder', got foldr, step (did you mean 'folder'?)"
    """
    near = next(filter(None, (did_you_mean(key, [name]) for key in given)), "")
    return f"must have the key {name!r}, got {listed or 'none'}{near}"


def check_type(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Check that an argument is of a type, which is described in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def check_callable(name: str, value: object) -> None:
    """Check that an argument can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def as_path(name: str, value: object) -> Path:
    """Check that an argument is a path or its text, and return the path."""
    check_type(name, value, (str, os.PathLike), "a path")
    return Path(value)  # type: ignore[arg-type]


def check_positive(name: str, value: Any) -> None:
    """Check that an argument is a positive and finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_size(name: str, value: object) -> None:
    """Check the type of a size, whose value is not read, because an exporter may not know it."""
    check_type(name, value, (Integral, torch.SymInt), "an integer")


def check_texts(name: str, values: object) -> tuple[str, ...]:
    """Check that an argument is several texts, and not one, and return them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        came = f"the text {values!r}" if isinstance(values, str) else type(values).__name__
        raise TypeError(f"{name} must be several names, got {came}")
    given = tuple(values)
    for value in given:
        if not isinstance(value, str):
            raise TypeError(f"{name} must hold names as text, got {value!r}")
    return given


def check_finite(name: str, values: Tensor) -> None:
    """Check that all values of a tensor on the CPU are finite; elsewhere, or while tracing, nothing is read."""
    if _is_readable(values) and not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0][0]) if values.ndim else 0
        place = f" in row {row}" if values.ndim else ""
        raise ValueError(f"{name} must be finite, got NaN or infinity{place}")


def check_weights(name: str, weight: Tensor) -> None:
    """Check that weights on the CPU are not negative; elsewhere, or while tracing, nothing is read."""
    if _is_readable(weight) and bool((weight < 0).any()):
        raise ValueError(f"{name} must not be negative, got {weight.min().item():g}")


def _is_readable(values: Tensor) -> bool:
    """Whether reading a tensor waits for no device and breaks no graph."""
    traced = torch.compiler.is_compiling() or is_transformed()
    return not traced and type(values) is Tensor and values.device.type == "cpu"


def check_flag(name: str, value: object) -> None:
    """Check that an option is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Check a whole number that must be at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_counts(name: str, values: Iterable[int], minimum: int = 1) -> tuple[int, ...]:
    """Check whole numbers that must each be at least ``minimum``, and return them."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {type(values).__name__}")
    given = tuple(values)
    for value in given:
        check_count(name, value, minimum)
    return given


def check_interval(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Check a number that must lie in [low, high], or in (low, high] with ``open_low``; NaN never does."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    above = value > low if open_low else value >= low
    if not (above and value <= high):
        raise ValueError(f"{name} must lie in {'(' if open_low else '['}{low}, {high}], got {value}")


def check_mapping(name: str, given: object) -> None:
    """Check that an argument is a mapping from names (of subspaces, magnifications, ...)."""
    if not isinstance(given, (Mapping, torch.nn.ModuleDict, torch.nn.ParameterDict)):
        raise TypeError(f"{name} must be a mapping from names, got {type(given).__name__}")


def check_names(name: str, given: Mapping[str, object], wanted: Iterable[str]) -> None:
    """Check that a mapping has exactly the wanted names."""
    check_mapping(name, given)
    if set(given) != set(wanted):
        raise ValueError(f"{name} must have exactly the names {sorted(wanted)}, got {sorted(given, key=str)}")


def check_subspaces(names: Iterable[str], name: str = "subspaces") -> tuple[str, ...]:
    """Check names that key modules and parameters (subspaces, magnifications): unique, not empty, without a dot."""
    if isinstance(names, str):
        raise TypeError(f"{name} must be a sequence of names, got the string {names!r}")
    if not isinstance(names, Iterable):
        raise TypeError(f"{name} must be a sequence of names, got {type(names).__name__}")
    given = tuple(names)
    for entry in given:
        if not isinstance(entry, str):
            raise TypeError(f"{name} must be a sequence of names, got {entry!r} among them")
        if not entry or "." in entry:
            raise ValueError(f"{name} must be non-empty strings without a dot, got {entry!r}")
        if hasattr(torch.nn.ModuleDict(), entry) or hasattr(torch.nn.ParameterDict(), entry):
            raise ValueError(f"{name} must not be attributes of a torch.nn.ModuleDict or ParameterDict, got {entry!r}")
    if not given or len(set(given)) != len(given):
        raise ValueError(f"{name} must hold at least one name, each once, got {given}")
    return given


def first_of(names: Sequence[str], count: int = 5) -> str:
    """The first few names, and how many more there are, for an error."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
