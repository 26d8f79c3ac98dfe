"""Stateless functions on tensors."""

from .attention_overlap import attention_overlap
from .biased_attention import biased_attention, biased_attention_weights
from .density_peaks import DensityPeaks, density_peaks
from .segment_mean import segment_mean, segment_softmax

__all__ = [
    "DensityPeaks",
    "attention_overlap",
    "biased_attention",
    "biased_attention_weights",
    "density_peaks",
    "segment_mean",
    "segment_softmax",
]
