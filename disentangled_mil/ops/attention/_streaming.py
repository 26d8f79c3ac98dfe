"""Biased attention over tiles of queries, on any device: the same numbers without the dense matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._operators import operator, refuse_forward_mode, refuse_gradient
from ..._precision import wide_dtype
from ..position_bias._bias_tiles import tiled_bias
from ._tiles import BagScores, BagScoresGradient, put, take

FIRST_ONLY = 'a gradient of a gradient needs backend="reference": the others have only the first'


def streaming(
    scores: Sequence[Tensor], value: Tensor, reach: float, scale: float, dropout: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, mass of the keys, and the weights if they are to be kept."""
    refuse_forward_mode("biased_attention", (*scores, value))
    # On the CPU, so that nobody waits for a device.
    seed = torch.randint(1 << 62, (), device="cpu") if dropout else None
    out, mass, weights = _streaming(scores, value, reach, scale, dropout, seed, keep)
    return out, mass, weights if keep else None


@operator("biased_attention_streaming")
def _streaming(
    scores: Sequence[Tensor],
    value: Tensor,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out, mass, kept = _empty(scores, value, reach, scale, dropout, seed, keep)
    tokens, keys = out.shape[2], mass.shape[2]
    with torch.autocast(value.device.type, enabled=False):
        bias = tiled_bias(scores, reach)
        for bag in range(len(value)):
            attend = BagScores(scores, bias, scale, bag)
            rows, columns = attend.rows, attend.columns
            drop = _Dropout(dropout, seed, bag, value.device)
            values = take(value[bag], 1, columns).to(attend.wide) * drop.scale  # [H, J, D]
            bag_out, bag_kept = out[bag], kept[bag]
            if rows is not None or columns is not None:
                bag_out = out.new_zeros(*attend.query.shape[:2], value.shape[3])
                bag_kept = kept.new_zeros(len(bag_out), bag_out.shape[1] if keep else 0, values.shape[1])
            bag_mass = torch.zeros_like(values[..., 0])  # [H, J]
            for tile in attend.tiles():
                weights, _ = attend.weights(tile)
                bag_mass += weights.sum(1)
                if keep:
                    bag_kept[:, tile] = weights
                bag_out[:, tile] = _thin(weights, drop.draw(weights)) @ values
                del weights, _  # before the next tile's are made
            mass[bag] = put(bag_mass, 1, columns, keys)
            if rows is not None or columns is not None:
                out[bag] = put(bag_out, 1, rows, tokens)
                kept[bag] = put(put(bag_kept, 2, columns, keys), 1, rows if keep else None, tokens)
    return out, mass, kept


@_streaming.register_fake
def _empty(
    scores: Sequence[Tensor],
    value: Tensor,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    query = scores[0]
    batch, heads, tokens, _ = query.shape
    wide, keys = wide_dtype(query), value.shape[2]
    # The heads of a token side by side, as the next layer wants them.
    out = value.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)
    mass = value.new_empty(batch, heads, keys, dtype=wide)
    return out, mass, value.new_empty(batch, heads, tokens if keep else 0, keys, dtype=wide)


@operator("biased_attention_streaming_backward")
def _backward(
    into_out: Tensor | None,
    into_mass: Tensor | None,
    into_kept: Tensor | None,
    scores: Sequence[Tensor],
    value: Tensor,
    kept: Tensor | None,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    *into_scores, into_value = result = [torch.zeros_like(tensor) for tensor in (*scores, value)]
    with torch.autocast(value.device.type, enabled=False):
        bias = tiled_bias(scores, reach)
        for bag in range(len(value)):
            attend = BagScores(scores, bias, scale, bag)
            rows, columns = attend.rows, attend.columns
            gradient = BagScoresGradient(attend, into_scores, wanted[:-1])
            drop = _Dropout(dropout, seed, bag, value.device)
            scaled_values = take(value[bag], 1, columns).to(attend.wide) * drop.scale  # [H, J, D]
            bag_into_value = torch.zeros_like(scaled_values)
            bag_kept = None if kept is None else take(take(kept[bag], 1, rows), 2, columns)
            bag_out = None if into_out is None else take(into_out[bag], 1, rows)
            bag_into_kept = (
                None if kept is None or into_kept is None else take(take(into_kept[bag], 1, rows), 2, columns)
            )
            bag_into_mass = None if into_mass is None else take(into_mass[bag], 1, columns)[:, None]
            for tile in attend.tiles():
                weights, biases = attend.weights(tile) if bag_kept is None else (bag_kept[:, tile], None)
                if bag_out is None:
                    change = torch.zeros_like(weights)
                else:
                    arriving = bag_out[:, tile].to(attend.wide)  # [H, t, D]
                    stays = drop.draw(weights)
                    change = _thin(arriving @ scaled_values.transpose(1, 2), stays)
                    bag_into_value.baddbmm_(_thin(weights, stays).transpose(1, 2), arriving)
                if bag_into_mass is not None:
                    change += bag_into_mass
                if bag_into_kept is not None:
                    change += bag_into_kept[:, tile]
                gradient.add(tile, weights, biases, change)
                del weights, biases, change  # before the next tile's are made
            gradient.finish()
            into_value[bag] = put(bag_into_value * drop.scale, 1, columns, value.shape[2])
        if bias and any(wanted[6:-1]):
            bias.finish(into_scores[6:])
    return result


@_backward.register_fake
def _like_inputs(
    into_out: Any, into_mass: Any, into_kept: Any, scores: Sequence[Tensor], value: Tensor, *_: Any
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (*scores, value)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, value, ctx.reach, ctx.scale, ctx.dropout, seed, ctx.keep = inputs
    ctx.save_for_backward(*scores, value, seed, output[2] if ctx.keep else None)
    ctx.set_materialize_grads(False)


def _pass_back(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    *scores, value, seed, kept = ctx.saved_tensors
    wanted = [*ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    into = _backward(*gradients, scores, value, kept, ctx.reach, ctx.scale, ctx.dropout, seed, wanted)
    *into_scores, into_value = (grad if want else None for grad, want in zip(into, wanted, strict=True))
    return into_scores, into_value, None, None, None, None, None


_streaming.register_autograd(_pass_back, setup_context=_remember)


refuse_gradient(_backward, FIRST_ONLY)


class _Dropout:
    """The weights that one bag drops, the same in every pass over its tiles."""

    _LEVELS = 1 << 16  # 16 random bits for each weight: the probability is met to 1e-5, and the scale is exact

    def __init__(self, probability: float, seed: Tensor | None, bag: int, device: torch.device) -> None:
        self.limit = round(probability * self._LEVELS)
        kept = self._LEVELS - self.limit
        self.scale = self._LEVELS / kept if kept else 0.0
        self.generator = None if seed is None else torch.Generator(device).manual_seed(int(seed) + bag)

    def draw(self, weights: Tensor) -> Tensor | None:
        """1 for every weight of the next tile that stays, 0 for the others."""
        if self.generator is None:
            return None
        words = torch.empty((weights.numel() + 3) // 4, dtype=torch.int64, device=weights.device)
        words.random_(-(2**63), None, generator=self.generator)
        numbers = words.view(torch.int16)[: weights.numel()].view_as(weights)
        return torch.ge(numbers, self.limit - self._LEVELS // 2, out=torch.empty_like(weights))


def _thin(weights: Tensor, stays: Tensor | None) -> Tensor:
    """The weights without the dropped ones, not yet scaled."""
    return weights if stays is None else weights * stays
