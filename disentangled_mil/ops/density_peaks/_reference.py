"""Distances of a bag's tokens from the dense N x N matrix."""

import math

import torch
from torch import Tensor


class DenseDistances:
    """Distances of the tokens [N, C] of a bag, all held at once."""

    def __init__(self, tokens: Tensor) -> None:
        self.pairs = distances(tokens, tokens)  # [N, N]

    def nearest(self, count: int) -> Tensor:
        """The smallest distances of every token to any token, itself included, ascending [N, count]."""
        return self.pairs.topk(count, largest=False).values

    def gap(self, rank: Tensor) -> Tensor:
        """Each token's distance [N] to the nearest of lower rank, meaning denser; for rank 0 the largest."""
        gap = self.pairs.masked_fill(rank >= rank[:, None], math.inf).amin(1)
        return torch.where(rank == 0, self.pairs.max(), gap)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances [..., N, M] as sums over differences."""
    # Without a product, equal tokens have distance zero, and a distance does not depend on its tile.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
