"""Cells of a lattice in which a network of ReLUs is folded: one unit changes its sign there, along a straight line.

On either side of the fold the network is a plane, which two steps between nodes give away: one along x, one along y,
from a corner that is clear of any kink, along edges that no kink crosses. On which side a place lies is told by the two
points at which the fold crosses the edges of the cell, and not by values: the planes of a unit that nothing reads are
equal, and their gradients are not.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ._kinks import Crossings, flat_nonzero


class Folds:
    """The folded cells of a lattice, and the planes of a function on both sides of every fold.

    Args:
        along_x: of the steps [R, S - 1] along x.
        along_y: of the steps [R - 1, S] along y.
        single: flat indices of the cells [R - 1, S - 1] of which two edges are crossed once and two are not; none is at
            the edge of the lattice.

    Attributes:
        cells: the M folded ones among them, without those that have no clear corner on each side.
        lines: their folds [3, M]: a constant, and factors of x and of y, whose sum is positive on the first side.
    """

    def __init__(self, along_x: Crossings, along_y: Crossings, single: Tensor) -> None:
        height, width = along_x.kinks.shape[0], along_y.kinks.shape[1]
        line, dtype = width - 1, along_x.place.dtype
        beside = single + torch.div(single, line, rounding_mode="floor")  # the upper left node, and the edge below it
        crossed_x, crossed_y = (steps.kinks.view(-1) > 0 for steps in (along_x, along_y))
        # The edges above, below, on the left and on the right of a cell.
        edges = torch.stack([crossed_x[single], crossed_x[single + line], crossed_y[beside], crossed_y[beside + 1]])
        # From its corners, the upper left and right and then the lower ones, along x and along y: into the cell ...
        inward = edges[[0, 0, 1, 1]], edges[[2, 3, 2, 3]]
        # ... and out of it.
        outward = (
            torch.stack([crossed_x[single + offset] for offset in (-1, 1, line - 1, line + 1)]),
            torch.stack([crossed_y[beside + offset] for offset in (-width, 1 - width, width, width + 1)]),
        )
        corner = _clear_corners(edges, inward, outward)  # [2, M]
        kept = flat_nonzero((corner < 4).all(0))
        self.cells, corner, beside = single[kept], corner[:, kept], beside[kept]

        edges, at = edges[:, kept], (corner & 1, corner >> 1)  # at [2, M] each
        origin = (beside % width).to(dtype), torch.div(beside, width, rounding_mode="floor").to(dtype)
        self._strides, self._half = (1, width), ((width - 1) / 2, (height - 1) / 2)
        # Of every plane a node, its place along each axis, and in which direction the next node is: along the edge into
        # the cell where that is clear. Along x it is one of the first two, along y one of the others.
        self._node = (beside + at[0] + width * at[1]).view(-1)  # [2 M]
        self._place = [
            ((cell + own) / half - 1).view(-1) for cell, own, half in zip(origin, at, self._half, strict=True)
        ]
        self._toward = [
            ((1 - 2 * own) * (1 - 2 * edges.gather(0, edge).long())).to(torch.int8).view(-1)
            for own, edge in zip(at, (at[1], 2 + at[0]), strict=True)
        ]

        x, y = along_x.place.view(-1), along_y.place.view(-1)
        points = (
            torch.stack([x[self.cells], x[self.cells + line], origin[0], origin[0] + 1]),
            torch.stack([origin[1], origin[1] + 1, y[beside], y[beside + 1]]),
        )  # [4, M] each
        self.lines = self._through(points, edges)

    def _through(self, points: Sequence[Tensor], crossed: Tensor) -> Tensor:
        """The lines through the two of four points [4, M] where edges are crossed, x and y in steps between nodes."""
        first, second = _first(crossed), 3 - _first(crossed.flip(0))
        start_x, start_y = (axis.gather(0, first[None])[0] for axis in points)
        end_x, end_y = (axis.gather(0, second[None])[0] for axis in points)
        half_x, half_y = self._half
        across = torch.stack([(start_y - end_y) * half_x, (end_x - start_x) * half_y])
        start = torch.stack([start_x / half_x - 1, start_y / half_y - 1])
        nearer = torch.stack([place[: len(first)] for place in self._place])
        across *= (across * (nearer - start)).sum(0).sign()
        return torch.cat([-(across * start).sum(0, keepdim=True), across])

    def planes(self, values: Tensor) -> Tensor:
        """All planes [3 I, 2 M] from the values [I, R, S] of the nodes: constants, factors of x, and factors of y.

        Those on the first sides of all cells come before those beyond the folds.
        """
        flat = values.flatten(1)
        start = node = flat[:, self._node]
        factors = []
        for place, neighbor, per_step in self._axes():
            factors.append((flat[:, neighbor] - node) * per_step)
            start = start - factors[-1] * place
        return torch.cat([start, *factors])

    def contract(self, gradient: Tensor, into: Tensor) -> None:
        """The transpose of :meth:`planes`: add to the gradient of the nodes [I, R, S] from that of the planes."""
        flat = into.view(len(into), -1)
        start, *factors = gradient.chunk(3)
        at_node = start
        for factor, (place, neighbor, per_step) in zip(factors, self._axes(), strict=True):
            change = (factor - start * place) * per_step
            at_node = at_node - change
            flat.scatter_add_(1, neighbor.expand_as(change), change)
        flat.scatter_add_(1, self._node.expand_as(at_node), at_node)

    def _axes(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Along each axis the nodes' places, their neighbors, and steps in a unit of the places [2 M] each."""
        for place, toward, stride, half in zip(self._place, self._toward, self._strides, self._half, strict=True):
            yield place, self._node + stride * toward.long(), half * toward.to(place.dtype)


class FoldRows:
    """A function at places [P, 2] in folded cells; the gradient of its planes is added up.

    Args:
        folds: the cells.
        planes: of the function [3 I, 2 M].
        which: of the folded cells every place lies in [P].
        place: in [-1, 1], all over the lattice.
        gradient: of the planes.
    """

    def __init__(self, folds: Folds, planes: Tensor, which: Tensor, place: Tensor, gradient: Tensor) -> None:
        # NumPy transposes pairs many times faster than PyTorch.
        self.gradient, self.place = gradient, torch.from_numpy(np.ascontiguousarray(place.numpy().T))
        beyond = self._affine(*(factor.index_select(0, which) for factor in folds.lines)) < 0
        self.plane = torch.add(which, beyond, alpha=len(folds.cells))
        self.parts = torch.stack([factor.index_select(0, self.plane) for factor in planes]).chunk(3)  # [I, P] each

    def _affine(self, start: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
        x, y = self.place
        return torch.addcmul(start, along_x, x).addcmul_(along_y, y)

    def values(self) -> Tensor:
        """The function's values [P, I]."""
        return self._affine(*self.parts).T

    def backward(self, change: Tensor, want_position: bool) -> Tensor | None:
        """From the gradient of the values [P, I] that of the places."""
        changes = change.T.contiguous()  # [I, P]
        parts = torch.cat([changes, *(changes * axis for axis in self.place)])
        self.gradient.scatter_add_(1, self.plane.expand_as(parts), parts)
        if not want_position:
            return None
        _, along_x, along_y = self.parts
        return torch.stack([(along_x * changes).sum(0), (along_y * changes).sum(0)], 1)


def _clear_corners(edges: Tensor, inward: tuple[Tensor, Tensor], outward: tuple[Tensor, Tensor]) -> Tensor:
    """Of every cell a corner on each side of its fold that has a clear edge along either axis; 4 if none has [2, M].

    An edge that no kink crosses or touches shows that its ends are on one side, and on no kink. A kink through a
    corner, or so near to it that rounding decides, touches the edges on both sides of it, and leaves neither clear.

    Args:
        edges: whether the edges above, below, on the left and on the right are crossed [4, M].
        inward: whether those of each corner into the cell are, along x and along y [4, M].
        outward: the same out of the cell.
    """
    clear = ~(inward[0] & outward[0]) & ~(inward[1] & outward[1])
    above, _, left, right = edges
    far = torch.stack([torch.zeros_like(above), above, left, above ^ right])  # from the upper left corner
    return torch.stack([_first(clear & ~far), _first(clear & far)])


def _first(choices: Tensor) -> Tensor:
    """Which of four [4, M] is the first that is True, 4 if none is; much faster than argmax."""
    ranks = torch.arange(4, 0, -1, dtype=torch.uint8, device="cpu")[:, None]
    return 4 - (choices * ranks).amax(0).long()
