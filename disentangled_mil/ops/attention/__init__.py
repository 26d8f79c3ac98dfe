"""Attention with a bias that is a function of the displacement between query and key, and overlaps of its maps."""

from ._overlap import attention_overlap
from ._scores import BACKENDS, AttentionOutput, AttentionScores, biased_attention, choose_backend

__all__ = [
    "BACKENDS",
    "AttentionOutput",
    "AttentionScores",
    "attention_overlap",
    "biased_attention",
    "choose_backend",
]
