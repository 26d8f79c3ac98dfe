"""Confidence-guided coordination of the gradients of several subspaces."""

from disentangled_mil.optim.cgc import CGCOptimizer, CGCReport

__all__ = ["CGCOptimizer", "CGCReport"]
