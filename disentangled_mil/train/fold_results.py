"""Results of finished folds on disk, so that folds may be separate jobs. The end of a run reads all of them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._errors import FileError
from ..tasks import Task, task_from_state
from .checkpoint import load_progress, save_progress
from .comparison import Evaluation
from .experiment import Result
from .out_of_fold import Headroom

RESULT = "result.pt"
STARTS = "starts.json"  # of the jobs that trained the fold


def save_result(folder: Path, result: Result, notes: Mapping[str, Any]) -> None:
    """Write the result of a fold, whole or not at all.

    Args:
        folder: folder of the fold.
        result: result.
        notes: further JSON values, such as the run that the fold belongs to.
    """
    evaluations = {
        test: {
            "task": one.task.state(),
            "labels": _plain(one.labels),
            "patients": list(one.patients),
            "logits": dict(one.logits),
        }
        for test, one in result.evaluations.items()
    }
    save_progress(
        folder / RESULT,
        {
            "notes": json.dumps(notes),
            "metrics": _plain(result.metrics),
            # As text, so that the table of the run is the same whoever reads it.
            "predictions": result.predictions.to_csv(index=False),
            "headroom": None if result.headroom is None else _plain(result.headroom._asdict()),
            "evaluations": evaluations,
        },
    )


def load_result(folder: Path, kinds: Mapping[str, type[Task]]) -> tuple[Result, dict[str, Any]]:
    """Read the result of a fold.

    Args:
        folder: folder of the fold.
        kinds: class of every kind of task.

    Returns:
        The result, with text in all cells of its table, and the notes.

    Raises:
        FileNotFoundError: the fold is not finished.
        ValueError: the file cannot be read.
    """
    path = folder / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the fold is not finished")
    saved = load_progress(path, "cpu")
    try:
        evaluations = {
            test: Evaluation(task_from_state(one["task"], kinds), one["labels"], one["patients"], one["logits"])
            for test, one in saved["evaluations"].items()
        }
        headroom = None if saved["headroom"] is None else Headroom(**saved["headroom"])
        predictions = pd.read_csv(io.StringIO(saved["predictions"]), dtype=str, keep_default_na=False)
        return Result(saved["metrics"], predictions, headroom, evaluations), json.loads(saved["notes"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path}: must hold the result of a fold ({type(error).__name__}: {error})", path) from error


def _plain(values: Any) -> Any:
    """The same values without NumPy's types, which are not read again."""
    if isinstance(values, Mapping):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values.item() if isinstance(values, np.generic) else values
