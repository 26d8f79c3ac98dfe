"""Targets of losses, and the selection of their rows."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .._checks import check_type
from .._collection import BatchCollection, TensorCollection


@dataclass(frozen=True, eq=False)
class SurvivalTarget(BatchCollection, parts=("interval", "event")):
    """Observation of each patient.

    Attributes:
        interval: interval of the last observation [B], int64.
        event: mask of the observed events [B], bool; False where the time is censored.

    Example:
        >>> import torch
        >>> from disentangled_mil.tasks import SurvivalTarget
        >>> target = SurvivalTarget(torch.tensor([0, 2]), torch.tensor([True, False]))
        >>> sorted(target.to_dict())
        ['event', 'interval']
    """

    interval: Tensor
    event: Tensor


Target: TypeAlias = Tensor | tuple[Tensor, ...] | TensorCollection


def select_target(target: Target, index: Tensor | slice, device: torch.device | str | None = None) -> Target:
    """Rows of a target, which is a tensor, a tensor collection, or a NamedTuple of tensors.

    Args:
        target: target of n samples.
        index: rows to take.
        device: device of the result; by default that of the target.

    Returns:
        A target of the same type.

    Example:
        >>> import torch
        >>> from disentangled_mil.tasks import SurvivalTarget, select_target
        >>> target = SurvivalTarget(torch.tensor([0, 2, 1]), torch.tensor([True, True, False]))
        >>> select_target(target, torch.tensor([2]))
        SurvivalTarget(interval=tensor([1]), event=tensor([False]))
    """
    check_type("target", target, (Tensor, tuple, TensorCollection), "a target of a task")

    def rows(column: Tensor) -> Tensor:
        try:
            return column[index].to(device or column.device)
        except IndexError as error:
            raise IndexError(f"index must select some of the {len(column)} samples: {error}") from error

    if isinstance(target, Tensor):
        return rows(target)
    return target._map(rows) if isinstance(target, TensorCollection) else type(target)(*map(rows, target))
