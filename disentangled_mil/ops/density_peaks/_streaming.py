"""The same distances, bit for bit, with a matrix product and O(N) memory.

Squared distances from a float64 matrix product *screen* the pairs, a tile of rows at a time. They are fast
but not exact, so they only choose candidates, whose distances are then summed over differences as in the
reference. A bound on the errors of both tells whether a pair that was not a candidate could have mattered;
rows where it could (ties, mostly) are done again, dense.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ._reference import distances

_TILE_BYTES = 32 * 2**20
_SPARE_CANDIDATES = 3


def nearest(tokens: Tensor, count: int) -> Tensor:
    """The smallest distances of every token [N, C] to any token, itself included, rising [N, count]."""
    screen = _Screen(tokens)
    return torch.cat([screen.smallest(rows, squared, count) for rows, squared in screen.tiles(earlier=False)])


def gap_to_earlier(tokens: Tensor) -> Tensor:
    """The distance of every token [N, C] to the nearest earlier one, for the first the largest of all [N]."""
    screen = _Screen(tokens)
    gaps, farthest = [], []
    for rows, squared in screen.tiles(earlier=True):
        farthest.append(squared.amax(1))
        later = torch.ones_like(squared, dtype=torch.bool).triu(rows.start)
        gaps.append(screen.smallest(rows, squared.masked_fill_(later, math.inf), 1).squeeze(1))
    gap = torch.cat(gaps)
    gap[0] = screen.largest(torch.cat(farthest))
    return gap


class _Screen:
    """Approximate squared distances of a bag's tokens, and how wrong they can be."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens  # [N, C]
        self.precise = tokens.double()
        self.norms = self.precise.square().sum(1)
        width, work = tokens.shape[1] + 8, torch.finfo(tokens.dtype)
        # Of the distances summed over differences, relative: C roundings of the working precision.
        self.relative = width * work.eps
        # Of the matrix product, absolute: C roundings of float64 at the size of the longest token.
        self.absolute = width * (4 * torch.finfo(torch.float64).eps * self.norms.max() + work.tiny)

    def tiles(self, *, earlier: bool) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their squared distances to all tokens [t, N], or only to those up to the tile's end."""
        size = len(self.tokens)
        step = max(1, _TILE_BYTES // (8 * size))
        for start in range(0, size, step):
            stop = min(start + step, size)
            columns = stop if earlier else size
            squared = torch.addmm(self.norms[:columns], self.precise[start:stop], self.precise[:columns].T, alpha=-2)
            yield slice(start, stop), squared.add_(self.norms[start:stop, None])

    def smallest(self, rows: slice, squared: Tensor, count: int) -> Tensor:
        """The exact smallest distances of each row, rising [t, count]; infinite ``squared`` is no pair."""
        columns = squared.shape[1]
        found = squared.topk(min(count + _SPARE_CANDIDATES, columns), largest=False)
        exact = distances(self.tokens[rows, None], self.tokens[found.indices]).squeeze(1)  # [t, candidates]
        exact = exact.masked_fill(found.values.isinf(), math.inf).topk(count, largest=False).values
        beyond = (1 - self.relative) * (found.values[:, -1] - self.absolute).clamp(min=0)
        unsure = (~(exact[:, -1].double().square() <= beyond)).nonzero().squeeze(1)  # NaN is unsure
        if len(unsure) and columns > found.values.shape[1]:
            dense = distances(self.tokens[rows][unsure], self.tokens[:columns])
            dense = dense.masked_fill(squared[unsure].isinf(), math.inf)
            exact[unsure] = dense.topk(count, largest=False).values
        return exact

    def largest(self, farthest: Tensor) -> Tensor:
        """The exact largest distance of all pairs, given each row's largest screened one [N]."""
        threshold = (1 - 2 * self.relative) * farthest.max() - 2 * self.absolute
        rows = (~(farthest < threshold)).nonzero().squeeze(1)  # NaN may be anything
        step = max(1, _TILE_BYTES // (8 * len(farthest)))
        return torch.stack([distances(self.tokens[r], self.tokens).max() for r in torch.split(rows, step)]).max()
