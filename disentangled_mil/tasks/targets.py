"""Targets of losses, and the selection of their rows."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class SurvivalTarget(NamedTuple):
    """Observation of each patient.

    Attributes:
        interval: interval of the last observation [B], int64.
        event: mask of the observed events [B], bool; False where the time is censored.
    """

    interval: Tensor
    event: Tensor


# A file of targets can then be loaded with ``weights_only=True``.
torch.serialization.add_safe_globals([SurvivalTarget])

Target: TypeAlias = Tensor | tuple[Tensor, ...]


def select_target(target: Target, index: Tensor | slice, device: torch.device | str | None = None) -> Target:
    """Rows of a target, which is a tensor or a NamedTuple of tensors.

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
    columns = (target,) if isinstance(target, Tensor) else target
    try:
        rows = [column[index].to(device or column.device) for column in columns]
    except IndexError as error:
        raise IndexError(f"index must select some of the {len(columns[0])} samples: {error}") from error
    return rows[0] if isinstance(target, Tensor) else type(target)(*rows)
