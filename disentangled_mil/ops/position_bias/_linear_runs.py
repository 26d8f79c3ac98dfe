"""Where a network of ReLUs is linear: the runs of nodes between its kinks, along the lines of a lattice.

A network is linear on the nodes of a line that no kink separates: their values follow from those of the first and the
last, and the gradients of their values are passed back through these two.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._folds import Folds
from ._kinks import Crossings, crossings, flat_nonzero


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
        along_x = crossings(parts, 0, y, width, at_once)
        along_y = Crossings(*(of_lines.T.contiguous() for of_lines in crossings(parts, 1, x, height, at_once)))
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
