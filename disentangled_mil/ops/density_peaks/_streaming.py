r"""Exact distances in O(N) memory: a matrix product excludes most pairs, and the others are computed exactly.

*What is computed.* The results equal those of the dense reference bit for bit. Exact distances are sums over
differences, which are slow. A matrix product is fast, but it rounds, so it gives bounds only. Let :math:`x` be the
tokens around their mean and :math:`n = \lVert x \rVert^2`. A squared distance is
:math:`n_i + n_j - 2 x_i \cdot x_j`, and rounding changes it by less than :math:`e\,(n_i + n_j)`. Hence
:math:`(1 - e)(n_i + n_j) - 2 x_i \cdot x_j` is a lower bound of it, and the same plus :math:`2 e\,(n_i + n_j)` is an
upper bound.

*How large the rounding is.* A sum of C terms is off by at most C / 2 epsilons of the sum of their sizes. The product
:math:`2 x_i \cdot x_j` and the two norms together are therefore off by C epsilons of :math:`n_i + n_j`. Centering and
additions add less than eight, and :math:`e` is twice :math:`C + 8` epsilons. An exact squared distance is off by less
than :math:`C + 8` epsilons of itself, and where squares underflow by less than :math:`8 (C + 8)` times the smallest
normal number. A squared distance is at most four times the largest :math:`n`, so nothing overflows if that is below an
eighth of the largest number.

*How it is tiled.* Rows and columns stand for tokens. A tile holds the lower bounds of some rows to all columns. The
candidates of a row are the columns with the smallest bounds, three more than are needed. Only their distances are
computed exactly. The squared distance to any other column is at least the bound of the last candidate. A row is settled
if the squares of its smallest distances are at most that bound. Otherwise it is computed densely, which happens where
many distances are equal but for rounding. The candidates also settle most rows of :meth:`gap`. The others are searched
again, among columns of lower rank.

*What it costs.* One matrix product N x N x C, the part of a second one for the rows that are searched again, and exact
distances of eight candidates per token at five neighbors. If no row settles, the time of the dense reference is added,
still in O(N) memory.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._reference import distances

_TILE_BYTES = 4 * 2**20  # A tile should fit into the cache, because it is read several times.
_TILE_ROWS = 128  # Products of fewer rows are slow.
_SPARE = 3  # Candidates of a row beyond those needed.
_GROUP = 32  # Columns that are represented by their minimum while candidates are chosen.


class _Candidates(NamedTuple):
    """The candidates of some rows, and what holds for all other columns.

    Attributes:
        columns: columns of the candidates [R, M].
        distances: exact distances to the candidates [R, M]; infinite for a rank that is not lower.
        beyond: lower bound of the squared distance to any other column [R].
        farthest: upper bound of the squared distance to any column [R].
    """

    columns: Tensor
    distances: Tensor
    beyond: Tensor
    farthest: Tensor


class StreamedDistances:
    """Distances of the tokens [N, C] of a bag, found tile by tile."""

    def __init__(self, tokens: Tensor) -> None:
        terms, precision = tokens.shape[1] + 8, torch.finfo(tokens.dtype)
        self.tokens = tokens
        self.centered = tokens - tokens.mean(0)  # [N, C]
        self.squared_norms = torch.linalg.vector_norm(self.centered, dim=1).square()  # [N]
        self.error = 2 * terms * precision.eps  # of the product, relative to the sum of both squared norms
        self.relative, self.absolute = terms * precision.eps, 8 * terms * precision.tiny  # of an exact distance
        self.shrunk = (1 - self.error) * self.squared_norms  # [N]
        self.reliable = bool(self.squared_norms.max() < precision.max / 8)

    def nearest(self, count: int) -> Tensor:
        """The smallest distances of every token to any token, ascending [N, count]; stores candidates for ``gap``."""
        self.found = self._search(torch.arange(len(self.tokens), device=self.tokens.device), count)
        return self.found.distances.topk(count, largest=False).values

    def gap(self, rank: Tensor) -> Tensor:
        """Distances [N] to the nearest token of lower rank, for rank 0 the largest; call ``nearest`` before."""
        not_lower = rank[self.found.columns] >= rank[:, None]
        gap = self.found.distances.masked_fill(not_lower, math.inf).amin(1)
        # The negation also selects NaN.
        rows = (~(gap.double().square() <= self.found.beyond)).nonzero().squeeze(1)
        if len(rows):
            gap[rows] = self._search(rows, 1, rank).distances.amin(1)
        return torch.where(rank == 0, self._largest(), gap)

    def _search(self, rows: Tensor, count: int, rank: Tensor | None = None) -> _Candidates:
        """Candidates of some rows that hold the ``count`` nearest tokens, of lower rank if there is a ``rank``."""
        candidates = min(count + _SPARE, len(self.tokens))
        row_bytes = (len(self.tokens) + candidates * self.tokens.shape[1]) * self.tokens.itemsize
        tiles = torch.split(rows, max(_TILE_ROWS, _TILE_BYTES // row_bytes))
        parts = zip(*(self._screen(tile, candidates, rank) for tile in tiles), strict=True)
        found = _Candidates(*map(torch.cat, parts))
        last = found.distances.topk(count, largest=False).values[:, -1]
        settled = last.double().square() <= found.beyond
        if not self.reliable:
            settled.fill_(False)
            found.farthest.fill_(math.inf)
        for unsettled in torch.split((~settled).nonzero().squeeze(1), _TILE_ROWS):
            dense = distances(self.tokens[rows[unsettled]], self.tokens)
            if rank is not None:
                dense.masked_fill_(rank >= rank[rows[unsettled], None], math.inf)
            nearest, columns = dense.topk(candidates, largest=False)
            found.distances[unsettled], found.columns[unsettled] = nearest, columns
            found.beyond[unsettled] = nearest[:, -1].double().square()
        return found

    def _screen(self, rows: Tensor, count: int, rank: Tensor | None) -> _Candidates:
        """Candidates of the rows of a tile, before it is known whether the product is reliable."""
        size = len(self.tokens)
        tile = self.centered.new_empty(len(rows), -(-size // _GROUP) * _GROUP)
        tile[:, size:] = math.inf
        bounds = tile[:, :size]
        # The row's own term is equal for all columns, so it is added only to what is kept.
        torch.addmm(self.shrunk, self.centered[rows], self.centered.T, alpha=-2, out=bounds)
        rounding = 2 * self.error * (self.squared_norms[rows] + self.squared_norms.max())
        farthest = bounds.amax(1) + self.shrunk[rows] + rounding
        if rank is not None:
            bounds.masked_fill_(rank >= rank[rows, None], math.inf)
        bound, columns = _smallest(tile, count)
        columns.clamp_(max=size - 1)

        exact = distances(self.tokens[rows, None], self.tokens[columns]).squeeze(1)
        exact.masked_fill_(bound.isinf(), math.inf)
        lower = (1 - self.relative) * (bound + self.shrunk[rows, None]).double() - self.absolute
        # A device may multiply in a lower precision than requested. Lower bounds that are too large reveal it.
        self.reliable = self.reliable and not bool((lower > exact.double().square()).any())
        beyond = lower[:, -1].clamp(min=0 if count < size else math.inf)
        return _Candidates(columns, exact, beyond, (1 + self.relative) * farthest.double() + self.absolute)

    def _largest(self) -> Tensor:
        """The largest distance of all pairs, among the tokens whose upper bound reaches it."""
        # Both tokens of the farthest pair are possible, so distances among these suffice. Repeated tokens count once.
        largest = distances(self.tokens[self.found.farthest.argmax(), None], self.tokens).max()
        # The negation also selects NaN.
        possible = ~(self.found.farthest < largest.double().square())
        far = torch.unique(self.tokens[possible], dim=0)
        return torch.stack([largest, *(distances(some, far).max() for some in torch.split(far, _TILE_ROWS))]).max()


def _smallest(tile: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The smallest numbers of each row, ascending, and their columns [R, count]."""
    # They lie in the ``count`` groups of columns with the smallest minima. Minima are faster than a selection.
    groups = tile.view(len(tile), _GROUP, -1)  # [R, _GROUP, groups]
    if groups.shape[2] <= count:
        return tile.topk(count, largest=False)
    chosen = groups.amin(1).topk(count, largest=False).indices  # [R, count]
    starts = torch.arange(0, tile.shape[1], groups.shape[2], device=tile.device)  # [_GROUP]
    columns = (starts[:, None] + chosen[:, None]).flatten(1)  # [R, _GROUP * count]
    smallest, index = tile.gather(1, columns).topk(count, largest=False)
    return smallest, columns.gather(1, index)
