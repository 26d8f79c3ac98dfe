"""Bilinear reading from maps, and its transpose: bilinear spreading onto maps."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding


class Corners(NamedTuple):
    """The four cells around a position: flat indices and bilinear weights, both [..., J, 4]."""

    cell: Tensor
    weight: Tensor


def bilinear_corners(position: Tensor, width: int, height: int) -> Corners:
    """The four cells around each position (x, y) in cells of a map; cells outside of the map weigh nothing.

    Args:
        position: (x, y), with whole numbers at the cell centers.
        width: columns of the map.
        height: rows of the map.

    Shape:
        ``position`` [..., J, 2].

    Returns:
        Indices into the flattened map (row by row) and weights, each [..., J, 4]. The weights carry the gradient.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.sampling import bilinear_corners
        >>> corners = bilinear_corners(torch.tensor([[0.25, 0.0]]), width=2, height=1)
        >>> corners.weight.tolist()
        [[0.75, 0.25, 0.0, 0.0]]
    """
    base = position.detach().floor()
    fraction = position - base
    index, weight = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = base[..., 0] + dx, base[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
            share_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
            index.append(torch.where(inside, y.long() * width + x.long(), 0))
            weight.append(torch.where(inside, share_x * share_y, 0))
    return Corners(torch.stack(index, dim=-1), torch.stack(weight, dim=-1))


def bilinear_sample(maps: Tensor, corners: Corners) -> Tensor:
    """Read maps at positions: the sum over the four corners of weight times cell.

    Args:
        maps: flattened maps.
        corners: of :func:`bilinear_corners`.

    Shape:
        ``maps`` [L, cells, C]; ``corners`` [L, J, 4].

    Returns:
        Samples [L, J, C].
    """
    # Not an einsum, whose weights autocast would round.
    return (read_cells(maps, corners.cell) * corners.weight[..., None]).sum(2)


def read_cells(maps: Tensor, cell: Tensor) -> Tensor:
    """Read whole cells of maps.

    An embedding and not an index, whose gradient threads would add up in any order: same input, same gradient.

    Args:
        maps: flattened maps.
        cell: flat indices.

    Shape:
        ``maps`` [L, cells, C], ``cell`` [L, ...].

    Returns:
        [L, ..., C].

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.sampling import read_cells
        >>> read_cells(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).tolist()
        [[[2.0]], [[3.0]]]
    """
    count, cells, _ = maps.shape
    row = cell.flatten(1) + cells * torch.arange(count, device=cell.device)[:, None]
    return embedding(row.view(cell.shape), maps.flatten(0, 1))


def bilinear_spread(values: Tensor, corners: Corners, cells: int) -> Tensor:
    """Spread values at positions onto the four cells around: the transpose of :func:`bilinear_sample`.

    Args:
        values: what each position carries.
        corners: of :func:`bilinear_corners`.
        cells: number of cells of the map.

    Shape:
        ``values`` [L, J]; ``corners`` [L, J, 4].

    Returns:
        Flattened maps [L, cells].
    """
    shares = (values[..., None] * corners.weight).flatten(1)
    return shares.new_zeros(len(values), cells).scatter_add(1, corners.cell.flatten(1), shares)
