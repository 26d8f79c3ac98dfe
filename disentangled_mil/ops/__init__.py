"""Stateless functions on tensors."""

from .attention import AttentionOutput, AttentionScores, attention_overlap, biased_attention
from .content_order import content_order
from .density_peaks import DensityPeaks, density_peaks
from .matching import match_prototypes
from .position_bias import BiasTable, MLPBias
from .sampling import Corners, bilinear_corners, bilinear_sample, bilinear_spread
from .segment_mean import segment_mean, segment_softmax
from .windows import depthwise_windows

__all__ = [
    "AttentionOutput",
    "AttentionScores",
    "BiasTable",
    "Corners",
    "DensityPeaks",
    "MLPBias",
    "attention_overlap",
    "biased_attention",
    "bilinear_corners",
    "bilinear_sample",
    "bilinear_spread",
    "content_order",
    "density_peaks",
    "depthwise_windows",
    "match_prototypes",
    "segment_mean",
    "segment_softmax",
]
