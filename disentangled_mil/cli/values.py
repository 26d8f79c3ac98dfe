"""Values of options: what a text means, and what is refused."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

_MOST_THREADS = 1024  # Far larger numbers end the process without a message.


def device(name: str) -> str:
    """The name of a device on which tensors can be made and read, of float64 too."""
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built for the device
        reason = str(error).partition("\n")[0]
        raise ArgumentTypeError(f"must be a device of this machine, got {name!r} ({reason})") from error
    return name


def fold_numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    if not re.fullmatch("[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise ArgumentTypeError(f"must be numbers of folds such as 0,2, got {text!r}")
    return [int(number) for number in text.split(",")]


def threads(text: str) -> int | str:
    """A number of threads, or auto."""
    if text == "auto":
        return text
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _MOST_THREADS:
        raise ArgumentTypeError(f"must be auto or a whole number from 1 to {_MOST_THREADS}, got {text!r}")
    return int(text)


def by_magnification(option: str, value: str, kind: Callable[[str], T], entries: Sequence[str]) -> dict[str, T]:
    """Several options MAGNIFICATION=VALUE as a mapping."""
    given: dict[str, T] = {}
    for entry in entries:
        magnification, separator, text = entry.partition("=")
        try:
            if not separator or magnification in given:
                raise ValueError(entry)
            given[magnification] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"{option} must be MAGNIFICATION={value}, each magnification once, got {entry!r}"
            ) from error
    return given
