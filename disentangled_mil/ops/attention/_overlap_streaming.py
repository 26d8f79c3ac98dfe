"""Inner products of attention maps that are computed a tile of queries at a time, and again on the way back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._operators import operator, refuse_forward_mode, refuse_gradient
from ..._precision import wide_dtype
from ..position_bias._bias_tiles import BiasTile, tiled_bias
from ._scores import AttentionScores
from ._tiles import BagScores, BagScoresGradient

_MOST_KEPT = 4  # bags whose biases are not computed again on the way back


def streaming(a: AttentionScores, b: AttentionScores) -> Tensor:
    """C_ij = <a_i, b_j> [B, B] of maps [B, H, N, J]."""
    left, right = a.tensors(), b.tensors()
    refuse_forward_mode("attention_overlap", (*left, *right))
    overlap: Tensor = _streaming(left, right, [a.reach, b.reach], [a.factor, b.factor])
    return overlap


@operator("attention_overlap_streaming")
def _streaming(a: Sequence[Tensor], b: Sequence[Tensor], reach: Sequence[float], scale: Sequence[float]) -> Tensor:
    overlap: Tensor = _empty(a, b, reach, scale).zero_()
    with torch.autocast(overlap.device.type, enabled=False):
        left, right = _bags(a, reach[0], scale[0]), _bags(b, reach[1], scale[1])
        for tile in _tiles(left, right):
            maps_a, maps_b = (
                torch.stack([bag.weights(tile)[0] for bag in bags]).flatten(1).to(overlap.dtype)
                for bags in (left, right)
            )
            overlap += maps_a @ maps_b.T
    return overlap


@_streaming.register_fake
def _empty(a: Sequence[Tensor], b: Sequence[Tensor], reach: Sequence[float], scale: Sequence[float]) -> Tensor:
    batch = len(a[0])
    wide = wide_dtype(a[0], b[0])
    return a[0].new_empty(batch, batch, dtype=wide)


@operator("attention_overlap_streaming_backward")
def _backward(
    gradient: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    reach: Sequence[float],
    scale: Sequence[float],
    wanted_a: Sequence[bool],
    wanted_b: Sequence[bool],
) -> list[Tensor]:
    result = [torch.zeros_like(tensor) for tensor in (*a, *b)]
    into_a, into_b = result[: len(a)], result[len(a) :]
    with torch.autocast(gradient.device.type, enabled=False):
        left, right = _bags(a, reach[0], scale[0]), _bags(b, reach[1], scale[1])
        left_gradients = [BagScoresGradient(bag, into_a, wanted_a) for bag in left]
        right_gradients = [BagScoresGradient(bag, into_b, wanted_b) for bag in right]
        for tile in _tiles(left, right):
            (maps_a, biases_a), (maps_b, biases_b) = _maps(left, tile), _maps(right, tile)
            for own, biases, other, share, bags in (
                (maps_a, biases_a, maps_b, gradient, left_gradients),
                (maps_b, biases_b, maps_a, gradient.T, right_gradients),
            ):
                change = (share @ other.flatten(1).to(share.dtype)).view_as(own).to(own.dtype)
                for bag, weights, bias, into in zip(bags, own, biases, change, strict=True):
                    bag.add(tile, weights, bias, into)
        for bags, into, wanted in ((left_gradients, into_a, wanted_a), (right_gradients, into_b, wanted_b)):
            for bag in bags:
                bag.finish()
            if bags and bags[0].scores.bias and any(wanted[6:]):
                bags[0].scores.bias.finish(into[6:])
    return result


@_backward.register_fake
def _like_inputs(gradient: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (*a, *b)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.reach, ctx.scale = inputs
    ctx.split = len(a)
    ctx.save_for_backward(*a, *b)


def _pass_back(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors[: ctx.split], ctx.saved_tensors[ctx.split :]
    wanted_a, wanted_b = ctx.needs_input_grad[:2]
    result = _backward(gradient, a, b, ctx.reach, ctx.scale, wanted_a, wanted_b)
    kept = [grad if want else None for grad, want in zip(result, (*wanted_a, *wanted_b), strict=True)]
    return kept[: ctx.split], kept[ctx.split :], None, None


_streaming.register_autograd(_pass_back, setup_context=_remember)


refuse_gradient(
    _backward, 'a gradient of a gradient needs dense maps: the weights of biased_attention(..., backend="reference")'
)


def _bags(tensors: Sequence[Tensor], reach: float, scale: float) -> list[BagScores]:
    query, key, query_position, key_position, mask, *others = tensors
    # Padding may hold anything, and its places are looked at here.
    query_position = query_position.where(mask[..., None], 0)
    clean = (query, key, query_position, key_position, mask, *others)
    bias = tiled_bias(clean, reach)
    maps = 2 * len(query)
    return [BagScores(clean, bias, scale, bag, skip=False, maps=maps) for bag in range(len(query))]


def _tiles(left: Sequence[BagScores], right: Sequence[BagScores]) -> list[slice]:
    """Tiles of queries that are small enough for both batches."""
    choices = (list(bag.tiles()) for bag in (*left[:1], *right[:1]))
    return max(choices, key=len, default=[])


def _maps(bags: Sequence[BagScores], tile: slice) -> tuple[Tensor, list[BiasTile | None]]:
    """The weights of a tile of every bag [B, H, t, J], and their biases where they are kept."""
    weights, biases = [], []
    for bag in bags:
        weight, bias = bag.weights(tile)
        weights.append(weight)
        biases.append(bias if len(bags) <= _MOST_KEPT else None)
    return torch.stack(weights), biases
