"""Overlaps of attention maps that are computed a tile of queries at a time, and again on the way back."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._operators import with_gradient, zeros_like
from ..._precision import wide_dtype
from ..position_bias import BiasTile
from ._bag import BagGradient, BagScores
from ._carried import CarriedScores


class _Arguments(NamedTuple):
    a: CarriedScores
    b: CarriedScores


class _Results(NamedTuple):
    overlap: Tensor  # [B, B]


def streaming(a: CarriedScores, b: CarriedScores) -> Tensor:
    """C_ij = <a_i, b_j> [B, B] of maps [B, H, N, J]."""
    return _overlap(_Arguments(a, b)).overlap


def _empty(given: _Arguments) -> _Results:
    batch = given.a.query.shape[0]
    return _Results(given.a.query.new_empty(batch, batch, dtype=wide_dtype(given.a.query, given.b.query)))


def _forward(given: _Arguments) -> _Results:
    overlap = _empty(given).overlap.zero_()
    a, b = _Side(given.a), _Side(given.b)
    for tile in _tiles(a, b):
        maps_a, maps_b = (_rows(side.maps(tile), overlap.dtype) for side in (a, b))
        overlap += maps_a @ maps_b.T
    return _Results(overlap)


def _backward(given: _Arguments, _: _Results, arriving: _Results, wanted: Any) -> _Arguments:
    into = zeros_like(given)
    a, b = _Side(given.a), _Side(given.b)
    gradients_a = [BagGradient(bag, wanted.a, into.a) for bag in a.bags]
    gradients_b = [BagGradient(bag, wanted.b, into.b) for bag in b.bags]
    for tile in _tiles(a, b):
        maps_a, maps_b = a.maps(tile), b.maps(tile)
        for own, other, gradients, share in (
            (maps_a, maps_b, gradients_a, arriving.overlap),
            (maps_b, maps_a, gradients_b, arriving.overlap.T),
        ):
            changes = share @ _rows(other, share.dtype)
            for (weights, biases), change, gradient in zip(own, changes, gradients, strict=True):
                gradient.add(tile, weights, biases, change.view_as(weights).to(weights.dtype))
    for gradient in (*gradients_a, *gradients_b):
        gradient.finish()
    return _Arguments(into.a.with_bias(a.bias, wanted.a), into.b.with_bias(b.bias, wanted.b))


class _Side:
    """The maps of one batch. Padded queries stay in their place, so that the maps of all bags have one shape."""

    def __init__(self, carried: CarriedScores) -> None:
        # Padding may hold anything, but biases are evaluated there.
        clean = carried._replace(query_position=carried.query_position.where(carried.mask[..., None], 0))
        self.bias = carried.tiled_bias()
        batch = len(carried.query)
        self.bags = [BagScores(clean, self.bias, bag, skip=False, maps=2 * batch) for bag in range(batch)]

    def maps(self, tile: slice) -> list[tuple[Tensor, BiasTile | None]]:
        """The weights [H, t, J] of a tile of every bag, and their biases."""
        biases = [bag.biases(tile) for bag in self.bags]
        return [(bag.weights(tile, bias), bias) for bag, bias in zip(self.bags, biases, strict=True)]


def _rows(maps: list[tuple[Tensor, BiasTile | None]], dtype: torch.dtype) -> Tensor:
    """The weights of a tile as a row for every bag [B, H t J]."""
    return torch.stack([weights for weights, _ in maps]).flatten(1).to(dtype)


def _tiles(a: _Side, b: _Side) -> list[slice]:
    """Tiles of queries that are small enough for both batches."""
    return max((list(bag.tiles()) for side in (a, b) for bag in side.bags[:1]), key=len, default=[])


_overlap = with_gradient(
    "attention_overlap_streaming",
    _Arguments,
    _Results,
    empty=_empty,
    forward=_forward,
    backward=_backward,
    caller="attention_overlap",
    no_second='a gradient of a gradient needs dense maps: the weights of biased_attention(..., backend="reference")',
)
