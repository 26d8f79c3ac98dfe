"""What is predicted: the target, the loss, the confidence and the prediction of one task, in one object."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from .classification import Classification
from .survival import DiscreteSurvival
from .targets import SurvivalTarget, Target

__all__ = ["Classification", "DiscreteSurvival", "SurvivalTarget", "Target", "Task", "task_from_state"]

Task: TypeAlias = Classification | DiscreteSurvival


def task_from_state(state: Mapping[str, Any]) -> Task:
    """Rebuild a task from what its ``state()`` returned.

    Raises:
        ValueError: the state is of no known task.

    Example:
        >>> from disentangled_mil import Classification, task_from_state
        >>> task_from_state(Classification(["low", "high"]).state())
        Classification(classes=('low', 'high'), class_weight=None)
    """
    kind = state.get("task")
    if kind == "classification":
        weight = state["class_weight"]
        return Classification(state["classes"], class_weight=None if weight is None else torch.tensor(weight))
    if kind == "survival":
        return DiscreteSurvival(torch.tensor(state["edges"], dtype=torch.float64), alpha=state["alpha"])
    raise ValueError(f"state must be of 'classification' or 'survival', got {kind!r}")
