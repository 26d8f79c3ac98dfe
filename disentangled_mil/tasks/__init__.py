"""Tasks: one class per kind of task owns all that differs between kinds.

A new kind is one file with a subclass of :class:`Task`, and one line in ``KINDS``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .._checks import check_mapping
from .._errors import FileError
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
        FileError: the kind is unknown, or the state does not describe a task of that kind.

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
        raise FileError(f"state['kind'] must be one of {', '.join(map(repr, kinds))}, got {kind!r}", key="kind")
    try:
        return kinds[kind].from_state(state)
    except KeyError as error:
        raise FileError(f"state must describe a task of kind {kind!r}, but lacks the key {error}") from error
    # Other kinds than those of the package may read their state as they like.
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, LookupError) as error:
        key = error.key if isinstance(error, FileError) else None
        raise FileError(f"state must describe a task of kind {kind!r}: {error}", key=key) from error
