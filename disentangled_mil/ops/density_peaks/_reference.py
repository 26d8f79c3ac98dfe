"""Distances of a bag's tokens from the dense N x N matrix."""

import math

import torch
from torch import Tensor


def nearest(tokens: Tensor, count: int) -> Tensor:
    """The smallest distances of every token [N, C] to any token, itself included, rising [N, count]."""
    return distances(tokens, tokens).topk(count, largest=False).values


def gap_to_earlier(tokens: Tensor) -> Tensor:
    """The distance of every token [N, C] to the nearest earlier one, for the first the largest of all [N]."""
    distance = distances(tokens, tokens)  # [N, N]
    later = torch.ones_like(distance, dtype=torch.bool).triu()
    gap = distance.masked_fill(later, math.inf).amin(1)
    gap[0] = distance.max()
    return gap


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [..., N, M], summed over differences: zero between equal tokens, and alike in any tile."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
