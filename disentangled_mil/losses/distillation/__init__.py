"""What a student learns from a teacher: its softened predictions and its subspace vectors."""

from ._prediction import prediction_distillation
from ._representation import representation_distillation
from ._targets import DistillationTargets
from ._total import DistillationLoss, SubspaceDistillation

__all__ = [
    "DistillationLoss",
    "DistillationTargets",
    "SubspaceDistillation",
    "prediction_distillation",
    "representation_distillation",
]
