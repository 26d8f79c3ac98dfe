"""What a prediction is compared with."""

from typing import NamedTuple, TypeAlias

from torch import Tensor


class SurvivalTarget(NamedTuple):
    """What was observed of each patient.

    Attributes:
        interval: interval of the last observation [B], int64.
        event: True where the death was observed, False where the time is censored [B], bool.
    """

    interval: Tensor
    event: Tensor


Target: TypeAlias = Tensor | SurvivalTarget
