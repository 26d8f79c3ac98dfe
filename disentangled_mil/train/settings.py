"""Where the options of the training come from: defaults, then a description, then the command line."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from .._checks import as_number, unknown_key
from .._errors import reading
from ..data.cohort_file import read_description
from .options import TrainingOptions

_WHAT = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def training_options(
    description: str | Path | None, defaults: TrainingOptions, settings: Iterable[str] = ()
) -> TrainingOptions:
    """The options of a run.

    Args:
        description: TOML file, whose section ``[training]`` comes before the defaults; None for none.
        defaults: options that neither gives.
        settings: texts ``NAME=VALUE``, which come before the section; of two for one name the last one counts.

    Returns:
        The options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an option is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> training_options(None, TrainingOptions(), ["epochs=5", "cgc=false"]).epochs
        5
    """
    options = defaults
    if description is not None:
        section = read_description(description).get("training", {})
        with reading(description):
            if not isinstance(section, dict):
                raise ValueError(f"{description}: [training] must be a table, got {section!r}")
            options = with_values(options, section, f"{description}: [training]")
    return with_values(options, dict(map(parse_setting, settings)), "--set")


def with_values(options: TrainingOptions, values: Mapping[str, Any], source: str) -> TrainingOptions:
    """Options with the values of a description or of the command line in place of their own.

    Args:
        options: options to start from.
        values: value by name of the option.
        source: place of the values, which begins every error.

    Returns:
        The options.

    Raises:
        ValueError: an option is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> with_values(TrainingOptions(), {"epochs": 5, "cgc": False}, "[training]").epochs
        5
        >>> with_values(TrainingOptions(), {"epoch": 5}, "[training]")
        Traceback (most recent call last):
        ValueError: [training] has the unknown key 'epoch' (did you mean 'epochs'?); known are ...
    """
    taken = {name: _of_type(name, value, source) for name, value in values.items()}
    try:
        return replace(options, **taken)
    except ValueError as error:
        raise ValueError(f"{source} {error}") from error


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``, an option on the command line.

    Args:
        text: name and value of an option.

    Returns:
        The name, and the value in the type of the option. A text that is no such value stays as it is, and
        :func:`with_values` refuses it.

    Raises:
        ValueError: there is no ``=``.

    Example:
        >>> parse_setting("epochs=5"), parse_setting("cgc=false")
        (('epochs', 5), ('cgc', False))
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set must be NAME=VALUE, got {text!r}")
    name, value = name.strip(), value.strip()
    kind = _kinds().get(name)
    if kind is bool and value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return name, int(value)
    if kind is float and (number := as_number(value)) == number:
        return name, number
    return name, value


def _of_type(name: str, value: Any, source: str) -> Any:
    """The value of an option, which must exist and be of its type."""
    kinds = _kinds()
    if name not in kinds:
        raise ValueError(f"{source} {unknown_key(name, kinds)}")
    kind = kinds[name]
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{source} {name} must be {_WHAT[kind]}, got {value!r}")
    return value


def _kinds() -> dict[str, type]:
    """The type of every option."""
    hints = get_type_hints(TrainingOptions)
    return {field.name: hints[field.name] for field in fields(TrainingOptions)}
