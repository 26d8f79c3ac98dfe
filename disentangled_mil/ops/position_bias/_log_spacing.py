"""Log-spaced displacements between the queries of a bag and its keys, along one axis."""

from functools import cached_property

import torch
from torch import Tensor


class SpacedAxis:
    """The places of displacements in a table along one axis: log1p(abs(d)) with the sign of d, the longest being one.

    Queries on a lattice share coordinates: logarithms are taken once for every coordinate, and not for every query.

    Args:
        queries: coordinates [N].
        keys: coordinates [G, J].
        side: the logarithm that becomes one.
        most: coordinates of queries whose places are held, for all tiles of the bag.
    """

    def __init__(self, queries: Tensor, keys: Tensor, side: float, most: int) -> None:
        self._queries, self._keys, self._side = queries, keys, side
        self._which: Tensor | None = None
        distinct, which = torch.unique(queries, return_inverse=True)
        if len(distinct) <= min(len(queries) // 2, most):
            self._queries, self._which = distinct, which

    def places(self, tile: slice) -> Tensor:
        """Of a tile of queries [G, t, J]."""
        if self._which is None:
            return self._place_of(self._queries[tile])
        return self._held_places.index_select(1, self._which[tile])

    def slopes(self, tile: slice) -> Tensor:
        """Of the places over the displacements [G, t, J]."""
        if self._which is None:
            return self._slope_of(self._queries[tile])
        return self._held_slopes.index_select(1, self._which[tile])

    @cached_property
    def _held_places(self) -> Tensor:
        return self._place_of(self._queries)

    @cached_property
    def _held_slopes(self) -> Tensor:
        return self._slope_of(self._queries)

    def _place_of(self, queries: Tensor) -> Tensor:
        return spaced(queries[:, None] - self._keys[:, None]).div_(self._side)

    def _slope_of(self, queries: Tensor) -> Tensor:
        return (queries[:, None] - self._keys[:, None]).abs_().add_(1).mul_(self._side).reciprocal_()


def spaced(displacement: Tensor) -> Tensor:
    """The logarithms log1p(abs(d)) of displacements, with their signs: in few passes, but without a gradient."""
    return displacement.abs().log1p_().copysign_(displacement)
