"""Confidence-guided coordination of the gradients of several subspaces."""

from .cgc import CGCOptimizer, CGCReport

__all__ = ["CGCOptimizer", "CGCReport"]
