"""Stateless functions on tensors."""

from .attention_overlap import attention_overlap
from .biased_attention import AttentionOutput, AttentionScores, biased_attention
from .density_peaks import DensityPeaks, density_peaks
from .matching import match_prototypes
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
    "match_prototypes",
    "segment_mean",
    "segment_softmax",
]
