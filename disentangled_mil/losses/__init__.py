"""Losses on plain tensors; none knows a layer."""

from .consistency import (
    AttentionMap,
    batch_similarity_consistency,
    inter_magnification_consistency,
)
from .distillation import (
    DistillationLoss,
    DistillationTargets,
    SubspaceDistillation,
    balance_shares,
    prediction_distillation,
    representation_distillation,
    share_distillation,
)
from .survival import discrete_time_nll

__all__ = [
    "AttentionMap",
    "DistillationLoss",
    "DistillationTargets",
    "SubspaceDistillation",
    "balance_shares",
    "batch_similarity_consistency",
    "discrete_time_nll",
    "inter_magnification_consistency",
    "prediction_distillation",
    "representation_distillation",
    "share_distillation",
]
