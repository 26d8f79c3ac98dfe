"""Disentangled multi-modal learning of histology and transcriptomics: composable layers for MIL."""

from . import _command  # noqa: F401
from ._errors import FileError
from .bags import Bag, Grid, TokenSet, collate_bags
from .losses import (
    DistillationLoss,
    DistillationTargets,
    SubspaceDistillation,
    balance_shares,
    batch_similarity_consistency,
    discrete_time_nll,
    inter_magnification_consistency,
    prediction_distillation,
    representation_distillation,
    share_distillation,
)
from .models import GeneNetwork, LinearModel, Student, Teacher
from .nn import (
    DMSF,
    ITA,
    ContinuousPositionBias,
    DeformableAttention,
    DeformableCrossAttention,
    GeneSelection,
    MagnificationGate,
    PatchEncoder,
    SetAttention,
    SNNEncoder,
    SubspaceHead,
)
from .ops import match_prototypes
from .optim import CGCOptimizer, CGCReport
from .tasks import Classification, DiscreteSurvival, SurvivalTarget, task_from_state

__version__ = "0.1.0"

__all__ = [
    "Bag",
    "CGCOptimizer",
    "CGCReport",
    "Classification",
    "ContinuousPositionBias",
    "DMSF",
    "DeformableAttention",
    "DeformableCrossAttention",
    "DiscreteSurvival",
    "DistillationLoss",
    "DistillationTargets",
    "FileError",
    "GeneNetwork",
    "GeneSelection",
    "Grid",
    "ITA",
    "LinearModel",
    "MagnificationGate",
    "PatchEncoder",
    "SNNEncoder",
    "SetAttention",
    "Student",
    "SubspaceDistillation",
    "SubspaceHead",
    "SurvivalTarget",
    "Teacher",
    "TokenSet",
    "balance_shares",
    "batch_similarity_consistency",
    "collate_bags",
    "discrete_time_nll",
    "inter_magnification_consistency",
    "match_prototypes",
    "prediction_distillation",
    "representation_distillation",
    "share_distillation",
    "task_from_state",
]
