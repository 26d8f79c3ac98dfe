"""Tasks: one class per kind of task owns all that differs between kinds.

A new kind is one file with a subclass of :class:`Task`, and one line in ``KINDS``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .._checks import check_mapping
from .classification import Classification
from .survival import DiscreteSurvival
from .targets import SurvivalTarget, Target, select_target
from .task import Column, Labels, Task, TaskDefinition

__all__ = [
    "KINDS",
    "Classification",
    "Column",
    "DiscreteSurvival",
    "Labels",
    "SurvivalTarget",
    "Target",
    "Task",
    "TaskDefinition",
    "select_target",
    "task_from_state",
]

KINDS: Mapping[str, type[Task]] = MappingProxyType(
    {"classification": Classification, "survival": DiscreteSurvival},
)


def task_from_state(state: Mapping[str, Any], kinds: Mapping[str, type[Task]] = KINDS) -> Task:
    """Rebuild a task from its ``state()``.

    Args:
        state: plain values, for instance from a checkpoint.
        kinds: class of every kind of task.

    Returns:
        The task.

    Raises:
        TypeError: the state is no mapping.
        ValueError: the kind is unknown, or the state does not describe a task of that kind.

    Example:
        >>> from disentangled_mil import Classification, task_from_state
        >>> task_from_state(Classification(["low", "high"]).state())
        Classification(classes=('low', 'high'), class_weight=None)
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping, as task.state() returns it, got {type(state).__name__}")
    check_mapping("kinds", kinds)
    kind = state.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"state['kind'] must be one of {', '.join(map(repr, kinds))}, got {kind!r}")
    try:
        return kinds[kind].from_state(state)
    except KeyError as error:
        raise ValueError(f"state must describe a task of kind {kind!r}, but lacks the key {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state must describe a task of kind {kind!r}: {error}") from error
