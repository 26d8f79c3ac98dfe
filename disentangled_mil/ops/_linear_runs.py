"""Where a network of ReLUs is linear: its kinks along the lines of a lattice, and the runs of nodes between them.

Along a line, every unit of the first layer changes sign at most once, and every unit of the second at most once between
two such changes. All kinks of a line are thus known from the few places where the first layer has one; no node of the
lattice is evaluated for it. A network is linear on the nodes of a line that no kink separates: their values follow from
those of the first and the last, and the gradients of their values are passed back through these two.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._folds import MANY, Crossings, Folds

_MARGIN = 1e-3  # of a step between nodes, for the rounding of places


class LinearRuns:
    """The nodes [R, S] of a lattice that spans [-1, 1] along both axes, in runs along x on which a network is linear.

    Args:
        parts: the six tensors of the network, which takes places [..., 2].
        height: R, nodes along y.
        width: S, nodes along x.
        at_once: for how many places the hidden layers are held.

    Attributes:
        kinked: True for the cells [R - 1, S - 1] that a kink may cross, and for those at the edge.
        folds: those of them that one kink crosses, and no other, where the planes on both sides are known.
        ends: the places [2 M, 2] of the first nodes of all runs, then of their last ones.
    """

    def __init__(self, parts: Sequence[Tensor], height: int, width: int, at_once: int) -> None:
        dtype = parts[0].dtype
        x, y = (torch.linspace(-1, 1, count, dtype=dtype, device="cpu") for count in (width, height))
        along_x = _crossings(parts, 0, y, width, at_once)
        along_y = Crossings(*(of_lines.T.contiguous() for of_lines in _crossings(parts, 1, x, height, at_once)))
        around = along_x.kinks[1:] + along_x.kinks[:-1] + along_y.kinks[:, 1:] + along_y.kinks[:, :-1]
        inner = torch.zeros_like(around, dtype=torch.bool)
        inner[1:-1, 1:-1] = True
        self.kinked = ~inner | (around > 0)
        self.folds = Folds(along_x, along_y, flat_nonzero(inner & (around == 2)))
        self.shape = (height, width)
        broken = torch.ones(height, width + 1, dtype=torch.bool, device="cpu")
        torch.gt(along_x.kinks, 0, out=broken[:, 1:-1])
        first, last = flat_nonzero(broken[:, :-1]), flat_nonzero(broken[:, 1:])
        node = torch.cat([first, last])
        self.ends = torch.stack([x[node % width], y[node // width]], -1)
        self.first, self.lengths = first.numpy(), (last - first + 1).numpy()

    def expand(self, values: Tensor) -> Tensor:
        """The values [I, R, S] of all nodes from those of the ends [2 M, I]."""
        first, last = values.T.contiguous().chunk(2, 1)
        return torch.lerp(self._repeat(first), self._repeat(last), self._share(values.dtype)).view(-1, *self.shape)

    def contract(self, gradient: Tensor) -> Tensor:
        """The transpose of :meth:`expand`: the gradient [2 M, I] of the ends from that of all nodes [I, R, S]."""
        flat, share = gradient.flatten(1), self._share(gradient.dtype)
        parts = (flat * part for part in (1 - share, share))
        return torch.cat([torch.from_numpy(np.add.reduceat(part.numpy(), self.first, axis=1)) for part in parts], 1).T

    def _share(self, dtype: torch.dtype) -> Tensor:
        """How far every node lies from the first of its run to the last [R * S]."""
        first, lengths = (torch.from_numpy(numbers).to(dtype) for numbers in (self.first, self.lengths))
        share = torch.arange(self.shape[0] * self.shape[1], dtype=dtype, device="cpu").sub_(self._repeat(first))
        return share.mul_(self._repeat(1 / (lengths - 1).clamp_(min=1)))

    def _repeat(self, of_runs: Tensor) -> Tensor:
        """What runs have [..., M], for each of their nodes [..., R * S]: many times faster than in PyTorch."""
        return torch.from_numpy(np.repeat(of_runs.numpy(), self.lengths, axis=-1))


def _crossings(parts: Sequence[Tensor], axis: int, offsets: Tensor, count: int, at_once: int) -> Crossings:
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
