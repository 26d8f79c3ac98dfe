"""What ``run.json`` says of a run: what decided its numbers, and the starts, which are never compared."""

import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from .._files import read_json
from .checkpoint import write_json
from .cohort_digest import same_values
from .fold_results import STARTS
from .processes import processes


def read_note(path: Path) -> dict[str, Any]:
    """The description of a run, or the starts of a fold."""
    return read_json(path, "hold the starts of a fold" if path.name == STARTS else "describe the run")


def this_start(threads: int) -> dict[str, Any]:
    """When, how and with which versions a run is started or resumed now."""
    return {
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}",
        "command": sys.orig_argv,
        "versions": _versions(),
        "threads": threads,
        "processes": processes(),
    }


def add_start(path: Path, start: Mapping[str, Any]) -> None:
    """Add starts to those of a file."""
    note = read_note(path) if path.is_file() else {}
    starts = note.get("starts", [])
    starts += [each for each in start["starts"] if each not in starts]
    write_json(path, {**note, **start, "starts": starts})


def differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """The options that differ; a digest says nothing to a reader."""
    if name == "cohort":
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**now, **before}:
            if key not in now or key not in before:
                had, has = (repr(values[key]) if key in values else "none" for values in (before, now))
                yield f"{key} must be {had}, got {has}"
            elif not same_values(before[key], now[key]):
                yield from differences(key, before[key], now[key])
    else:
        yield f"{name} must be {before!r}, got {now!r}"


def _versions() -> dict[str, str]:
    """The versions on which the last digits of a run may depend."""
    return {
        "disentangled_mil": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
