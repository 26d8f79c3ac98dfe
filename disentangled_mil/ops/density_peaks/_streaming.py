"""The same distances, bit for bit, from a matrix product and in O(N) memory.

A matrix product bounds the squared distances of all pairs from below, a tile of rows at a time. The pairs of a row
with the smallest bounds are its *candidates*; their distances are summed over differences, as in the reference. Any
other pair is at least as far apart as the last candidate's bound says, which settles nearly every row. The others, if
they are many, are searched again in float64 with more candidates; what is left then (ties, mostly) is done dense.

The first candidates also hold the nearest token of lower rank of most tokens, and the bounds leave few tokens that
could belong to the farthest pair.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._reference import distances

_TILE_BYTES = 4 * 2**20  # tiles are read several times: best from a cache
_CANDIDATES = 2**20  # are held at once beside what is kept of them
_RECHECKED_BYTES = 2**20  # of candidates' tokens at once, for which the allocator need not ask the system every time
_CACHE_LINE = 16  # numbers in float32; rows and groups begin at multiples of it
_TILE_ROWS = 128  # with fewer rows a matrix product spends its time on packing
_FEW_ROWS = 8  # done dense sooner than searched
_SPARE = 3, 11, 123  # candidates beyond the wanted ones, search by search


class Distances:
    """Searches among the tokens of a bag [N, C]."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.screen = tokens, _Screen(tokens, tokens.dtype)
        self.searches = tuple(zip((tokens.dtype, torch.float64, torch.float64), _SPARE, strict=True))

    def nearest(self, count: int) -> Tensor:
        """The smallest distances of every token to any token, itself included, rising [N, count]."""
        (_, spare), *again = self.searches
        self.first = self.screen.search(slice(0, len(self.tokens)), count + spare)
        nearest = self.first.distances.topk(count, largest=False).values
        return self._settle(nearest, self.first.beyond, again)

    def gap(self, rank: Tensor) -> Tensor:
        """The distance of every token to the nearest of lower rank, for rank 0 the largest of all [N]."""
        no_lower = rank[self.first.columns] >= rank[:, None]
        nearest = self.first.distances.masked_fill(no_lower, math.inf).amin(1, keepdim=True)
        gap = self._settle(nearest, self.first.beyond, self.searches, rank).squeeze(1)
        return torch.where(rank == 0, self._largest(), gap)

    def _settle(
        self, nearest: Tensor, beyond: Tensor, searches: Sequence[tuple[torch.dtype, int]], rank: Tensor | None = None
    ) -> Tensor:
        """Search again wherever a token that was no candidate could come before the last of ``nearest`` [N, count]."""
        count = nearest.shape[1]
        rows = _unsure(nearest, beyond)
        for dtype, spare in searches:
            if len(rows) > _FEW_ROWS:
                screen = self.screen if dtype == self.tokens.dtype else _Screen(self.tokens, dtype)
                found = screen.search(rows, count + spare, rank)
                nearest[rows] = found.distances.topk(count, largest=False).values
                rows = rows[_unsure(nearest[rows], found.beyond)]
        for some in torch.split(rows, _tile_rows(self.tokens)):
            dense = distances(self.tokens[some], self.tokens)
            if rank is not None:
                dense.masked_fill_(rank >= rank[some, None], math.inf)
            nearest[some] = dense.topk(count, largest=False).values
        return nearest

    def _largest(self) -> Tensor:
        """The largest distance of all pairs."""
        one = self.first.farthest.argmax()
        largest = distances(self.tokens[one, None], self.tokens).max()
        # The token itself is always among them, NaN and inf included.
        far = torch.unique(self.tokens[~(self.first.farthest < largest.double().square())], dim=0)
        return torch.stack([largest, *(distances(some, far).max() for some in torch.split(far, _tile_rows(far)))]).max()


class _Candidates(NamedTuple):
    """What a search finds out about each of its rows."""

    columns: Tensor  # [R, M]
    distances: Tensor  # [R, M], infinite where the rank is not lower
    beyond: Tensor  # [R], no other token has a smaller squared distance
    farthest: Tensor  # [R], no token at all has a larger one


class _Screen:
    """Squared distances by a matrix product in some precision, and how wrong they can be."""

    def __init__(self, tokens: Tensor, dtype: torch.dtype) -> None:
        width, exact, product = tokens.shape[1] + 8, torch.finfo(tokens.dtype), torch.finfo(dtype)
        self.tokens = tokens
        center = tokens.mean(0, dtype=dtype)  # [C], tokens around it are short, and make small errors
        self.centered = tokens.to(dtype, copy=True).sub_(center)  # [N, C]
        self.norms = torch.linalg.vector_norm(self.centered, dim=1).square()  # [N]
        # Of the product, relative to the sum of both norms: three sums of C terms, and a few single roundings.
        self.error = 2 * width * product.eps
        self.shrunk = (1 - self.error) * self.norms
        # Of the distances summed over differences: one sum of C terms, and underflow.
        self.relative, self.absolute = width * exact.eps, 8 * width * exact.tiny
        self.broken = not self.norms.max() < product.max / 8

    def search(self, rows: Tensor | slice, count: int, rank: Tensor | None = None) -> _Candidates:
        """Find ``count`` candidates for each of some rows."""
        blocks = _split(rows, max(1, _CANDIDATES // count))
        found = _Candidates(*map(torch.cat, zip(*(self._search(some, count, rank) for some in blocks), strict=True)))
        if self.broken:
            found.beyond.fill_(-math.inf)
            found.farthest.fill_(math.inf)
        return found

    def _search(self, rows: Tensor | slice, count: int, rank: Tensor | None) -> _Candidates:
        size = len(self.tokens)
        count = min(count, size)
        # As many minima as members of the groups that are looked through, and rows that begin a cache line.
        grouped = math.isqrt(size // count)
        width = -(-size // (grouped * _CACHE_LINE)) * _CACHE_LINE * grouped
        pieces = _split(rows, _tile_rows(self.centered))
        tile = self.centered.new_empty(len(self.norms[pieces[0]]), width)
        tile[:, size:] = math.inf
        found = []
        for some in pieces:
            centered = self.centered[some]
            bounds = tile[: len(centered), :size]
            torch.addmm(self.shrunk, centered, self.centered.T, alpha=-2, out=bounds)
            longest = bounds.amax(1)
            if rank is not None:
                bounds.masked_fill_(rank >= rank[some, None], math.inf)
            shortest, columns = _smallest(tile[: len(centered)], count, grouped)
            found.append((columns.clamp(max=size - 1), shortest, longest))
        return self._recheck(rows, *map(torch.cat, zip(*found, strict=True)))

    def _recheck(self, rows: Tensor | slice, columns: Tensor, shortest: Tensor, longest: Tensor) -> _Candidates:
        """Sum the candidates' distances over differences, and turn what the product says into bounds on such sums."""
        exact = self._distances(rows, columns).masked_fill_(shortest.isinf(), math.inf)
        norms, shrunk = self.norms[rows], self.shrunk[rows]
        shortest = (1 - self.relative) * (shortest + shrunk[:, None]).double() - self.absolute
        longest = (longest + shrunk + 2 * self.error * (norms + self.norms.max())).double()
        # A device may multiply with less than the precision asked for; then candidates come out too far.
        self.broken = self.broken or bool((shortest > exact.double().square()).any())
        beyond = shortest[:, -1].clamp(min=0 if columns.shape[1] < len(self.tokens) else math.inf)
        return _Candidates(columns, exact, beyond, (1 + self.relative) * longest + self.absolute)

    def _distances(self, rows: Tensor | slice, columns: Tensor) -> Tensor:
        """The distance of each row to each of its columns [R, M]."""
        step = max(1, _RECHECKED_BYTES // (columns.shape[1] * self.tokens[0].nbytes))
        room = self.tokens.new_empty(columns[:step].numel(), self.tokens.shape[1])
        found = []
        for some, candidates in zip(_split(rows, step), torch.split(columns, step), strict=True):
            others = torch.index_select(self.tokens, 0, candidates.flatten(), out=room[: candidates.numel()])
            found.append(distances(self.tokens[some, None], others.view(*candidates.shape, -1)).squeeze(1))
        return torch.cat(found)


def _unsure(nearest: Tensor, beyond: Tensor) -> Tensor:
    """Rows in which a token beyond the candidates may be nearer than the last of ``nearest``; NaN may be anything."""
    return (~(nearest[:, -1].double().square() <= beyond)).nonzero().squeeze(1)


def _smallest(tile: Tensor, count: int, grouped: int) -> tuple[Tensor, Tensor]:
    """The smallest numbers of each row, rising, and their columns [R, count].

    They are in the ``count`` groups of the smallest minima, and minima are cheap.
    """
    if grouped == 1:
        return tile.topk(count, largest=False)
    groups = tile.view(len(tile), grouped, -1)  # [R, grouped, G]
    chosen = groups.amin(1).topk(count, largest=False, sorted=False).indices  # [R, count]
    starts = torch.arange(0, tile.shape[1], groups.shape[2], device=tile.device)  # [grouped]
    members = (starts[:, None] + chosen[:, None]).flatten(1)  # [R, grouped * count]
    smallest, place = tile.gather(1, members).topk(count, largest=False)
    return smallest, members.gather(1, place)


def _split(rows: Tensor | slice, step: int) -> Sequence[Tensor | slice]:
    """Rows in pieces; a slice of all of them copies nothing."""
    if isinstance(rows, Tensor):
        return torch.split(rows, step)
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def _tile_rows(tokens: Tensor) -> int:
    """How many rows of the distance matrix are held at once."""
    return max(_TILE_ROWS, _TILE_BYTES // (len(tokens) * tokens.itemsize))
