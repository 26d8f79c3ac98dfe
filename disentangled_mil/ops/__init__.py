"""Stateless functions on tensors."""

from .attention import AttentionOutput, AttentionScores, attention_overlap, biased_attention
from .density_peaks import DensityPeaks, density_peaks
from .position_bias import BiasTable, MLPBias
from .segment_mean import segment_mean, segment_softmax

__all__ = [
    "AttentionOutput",
    "AttentionScores",
    "BiasTable",
    "DensityPeaks",
    "MLPBias",
    "attention_overlap",
    "biased_attention",
    "density_peaks",
    "segment_mean",
    "segment_softmax",
]
