"""What a student learns from a teacher: its softened predictions, its subspace vectors, its shares of the logits."""

from ._prediction import prediction_distillation
from ._representation import representation_distillation
from ._shares import balance_shares, share_distillation
from ._targets import DistillationTargets
from ._total import DistillationLoss, SubspaceDistillation

__all__ = [
    "DistillationLoss",
    "DistillationTargets",
    "SubspaceDistillation",
    "balance_shares",
    "prediction_distillation",
    "representation_distillation",
    "share_distillation",
]
