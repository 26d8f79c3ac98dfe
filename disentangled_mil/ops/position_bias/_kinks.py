"""Kinks of a network of ReLUs: where its units change their signs along the lines of a lattice.

Along a line, every unit of the first layer changes sign at most once, and every unit of the second at most once between
two such changes. All kinks of a line are thus known from the few places where the first layer has one; no node of the
lattice is evaluated for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_MARGIN = 1e-3  # of a step between nodes, for the rounding of places
MANY = 3  # kinks across one step, which then are not told apart


class Crossings(NamedTuple):
    """Where kinks cross the steps between neighboring nodes, all along one axis of a lattice [R, S].

    Attributes:
        kinks: 0, 1 or ``MANY`` that may cross a step, as bytes.
        place: if it is one, where it does, in steps from the first node of the line.
    """

    kinks: Tensor
    place: Tensor


def crossings(parts: Sequence[Tensor], axis: int, offsets: Tensor, count: int, at_once: int) -> Crossings:
    """Where units may change their sign along some lines of nodes [L, count - 1].

    Args:
        parts: of the network.
        axis: that the lines lie along.
        offsets: of the lines along the other axis [L].
        count: of the nodes of each line.
        at_once: for how many places the hidden layers are held.
    """
    step = max(1, at_once // (len(parts[0]) + 2))
    found = [_touched(*_changes(parts, axis, some), len(some), count) for some in torch.split(offsets, step)]
    return Crossings(*map(torch.cat, zip(*found, strict=True)))


def _changes(parts: Sequence[Tensor], axis: int, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where units come so near to zero that rounding decides on their sign: the line [P], from there, to there."""
    w1, b1, w2, b2, _, _ = parts
    features, along = len(w1), w1[:, axis]
    rounding = (features + 8) * torch.finfo(w1.dtype).eps

    shift = offsets[:, None] * w1[:, 1 - axis] + b1  # [L, F]
    error = rounding * (w1.abs().sum(1) + b1.abs())  # [F]
    # Not the place of the change plus and minus an error: for a unit that hardly changes both may be infinite.
    upwards = shift * torch.ones_like(along).copysign(along)
    low, high = (-upwards - error) / along.abs(), (error - upwards) / along.abs()

    # The changes of the first layer in their order, between the ends of the line; the second is linear between them.
    inside = (-shift / along).nan_to_num(-1).clamp(-1, 1)
    ends = inside.new_tensor([-1.0, 1.0]).expand(len(offsets), 2)
    place = torch.cat([inside, ends], 1).sort(1).values  # [L, F + 2]
    hidden = torch.addcmul(shift[:, None], place[..., None], along).relu_()  # [L, F + 2, F]
    second = torch.addmm(b2, hidden.flatten(0, 1), w2.T).view_as(hidden)
    error = rounding * (hidden.flatten(0, 1).amax(0) @ w2.T.abs() + b2.abs())  # [F]
    side = (second > error).byte() + (second >= -error)
    entry = flat_nonzero(side[:, 1:] != side[:, :-1])
    piece, unit = entry // features, entry % features
    line = piece // (features + 1)
    piece = piece % (features + 1)
    left, right, error = second[line, piece, unit], second[line, piece + 1, unit], error[unit]
    start, end = place[line, piece], place[line, piece + 1]
    shares = torch.stack([left - error, left + error]).div_(left - right).clamp_(0, 1)  # [2, P]
    from_there, to_there = torch.lerp(start, end, shares).aminmax(dim=0)

    every_line = torch.arange(len(offsets), device="cpu").repeat_interleave(features)
    return torch.cat([every_line, line]), torch.cat([low.view(-1), from_there]), torch.cat([high.view(-1), to_there])


def _touched(line: Tensor, low: Tensor, high: Tensor, lines: int, count: int) -> Crossings:
    """Where intervals [P] touch steps between nodes; steps at the edge have all that is outside.

    An interval that is longer than half a step counts as many, for its place is not known.
    """
    start, end = ((bound.nan_to_num(-1) + 1) * ((count - 1) / 2) for bound in (low, high))
    first, last = ((bound.clamp_(0, count - 2).long()) for bound in (start - _MARGIN, end + _MARGIN))
    weight = 1 + (end - start > 0.5).int()
    first += line * count
    last += line * count
    # How many begin at a step, less those that have ended before it.
    begun = torch.zeros(lines * count, dtype=torch.int32, device="cpu")
    begun.scatter_add_(0, first, weight).scatter_add_(0, last + 1, -weight)
    place = low.new_zeros(lines * count)
    middle = (start + end) / 2
    for at in (first, last):
        place.scatter_(0, at, middle)
    touching = begun.view(lines, count)[:, :-1].cumsum(1, dtype=torch.int32)
    return Crossings(torch.where(touching > 1, MANY, touching).byte(), place.view(lines, count)[:, :-1])


def flat_nonzero(mask: Tensor) -> Tensor:
    """Where a mask on the CPU is True, in its order [M]; faster than torch.nonzero."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
