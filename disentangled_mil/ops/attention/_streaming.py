"""Biased attention over tiles of queries, on any device.

The numbers are those of the reference. Only a tile of its dense matrices exists at a time, except for weights that are
kept.
"""

import torch
from torch import Tensor

from ..._operators import with_gradient, zeros_like
from ..._precision import wide_dtype
from ..._torch_private import softmax_backward
from ._bag import BagGradient, BagScores, put, take
from ._carried import Attended, AttentionArguments, CarriedScores
from ._dropout import Dropout, apply_mask

NO_SECOND_GRADIENT = 'a gradient of a gradient needs backend="reference": the others have only the first'


def streaming(scores: CarriedScores, value: Tensor, dropout: float, keep: bool) -> Attended:
    """Attend tile by tile."""
    # The seed is on the CPU, so that nothing waits for a device.
    seed = torch.randint(1 << 62, (), device="cpu") if dropout else None
    return _streaming(AttentionArguments(scores, value, dropout, seed, keep))


def _empty(given: AttentionArguments) -> Attended:
    query, value = given.scores.query, given.value
    batch, heads, tokens, _ = query.shape
    wide, keys = wide_dtype(query), value.shape[2]
    # The heads of a token are side by side, as the next layer reads them.
    out = value.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)
    mass = value.new_empty(batch, heads, keys, dtype=wide)
    return Attended(out, mass, value.new_empty(batch, heads, tokens if given.keep else 0, keys, dtype=wide))


def _forward(given: AttentionArguments) -> Attended:
    results = _empty(given)
    bias = given.scores.tiled_bias()
    for bag, (out, mass, kept) in enumerate(zip(*results, strict=True)):
        scores = BagScores(given.scores, bias, bag)
        if scores.rows is not None:  # tiles write no padded queries
            out.zero_()
            kept.zero_()
        drop = Dropout(given.dropout, given.seed, bag, out.device)
        values = take(given.value[bag], 1, scores.columns).to(scores.wide) * drop.scale  # [H, J, D]
        bag_mass = torch.zeros_like(values[..., 0])  # [H, J]
        for tile in scores.tiles():
            weights = scores.weights(tile, scores.biases(tile))
            bag_mass += weights.sum(1)
            if given.keep:
                scores.write(put(weights, 2, scores.columns, kept.shape[2]), kept, tile)
            scores.write(apply_mask(weights, drop.draw(weights)) @ values, out, tile)
            del weights  # before the next tile's are made
        mass.copy_(put(bag_mass, 1, scores.columns, mass.shape[1]))
    return results


def _backward(
    given: AttentionArguments, results: Attended, arriving: Attended, wanted: AttentionArguments
) -> AttentionArguments:
    gradient = zeros_like(given)
    bias = given.scores.tiled_bias()
    for bag in range(len(given.value)):
        scores = BagScores(given.scores, bias, bag)
        bag_gradient = BagGradient(scores, wanted.scores, gradient.scores)
        drop = Dropout(given.dropout, given.seed, bag, given.value.device)
        values = take(given.value[bag], 1, scores.columns).to(scores.wide) * drop.scale  # [H, J, D]
        grad_values = torch.zeros_like(values)
        kept = results.weights[bag] if given.keep else None
        grad_out, grad_mass, grad_kept = (None if part is None else part[bag] for part in arriving)
        for tile in scores.tiles():
            biases = None if given.keep else scores.biases(tile)
            weights = scores.weights(tile, biases) if kept is None else scores.read(kept, tile, keys=True)
            keep_mask = None
            if grad_out is None:
                grad_weights = torch.zeros_like(weights)
            else:
                grad_tile = scores.read(grad_out, tile).to(scores.wide)  # [H, t, D]
                keep_mask = drop.draw(weights)
                grad_weights = apply_mask(grad_tile @ values.transpose(1, 2), keep_mask)
                grad_values.baddbmm_(apply_mask(weights, keep_mask).transpose(1, 2), grad_tile)
            if grad_mass is not None:
                grad_weights += take(grad_mass, 1, scores.columns)[:, None]
            if grad_kept is not None and given.keep:
                grad_weights += scores.read(grad_kept, tile, keys=True)
            grad_scores = softmax_backward(grad_weights, weights)
            del weights, grad_weights, keep_mask  # before the bias makes tiles of its own
            bag_gradient.add(tile, grad_scores, biases)
            del grad_scores, biases  # before the next tile's are made
        bag_gradient.finish()
        gradient.value[bag] = put(grad_values * drop.scale, 1, scores.columns, gradient.value.shape[2])
    return gradient._replace(scores=gradient.scores.with_bias(bias, wanted.scores))


_streaming = with_gradient(
    "biased_attention_streaming",
    AttentionArguments,
    Attended,
    empty=_empty,
    forward=_forward,
    backward=_backward,
    saved=["weights"],
    caller="biased_attention",
    no_second=NO_SECOND_GRADIENT,
)
