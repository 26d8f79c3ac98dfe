"""Bilinear sampling of maps, and its transpose: bilinear spreading onto maps.

*What is computed.* A position lies between four cells, and each has a bilinear weight. Sampling sums weight times cell.
Spreading adds a value to the four cells by the same weights. The weights are zero for cells outside of the map.

*What its backward is.* Autograd differentiates both. The weights carry the gradient of the positions.

*What it costs.* Four cells per position, so O(L J C) operations and memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from .._checks import check_floating, check_shape, check_size, check_type


class Corners(NamedTuple):
    """The four cells around each position.

    Attributes:
        cell: flat indices of the cells [..., J, 4].
        weight: bilinear weights [..., J, 4].
    """

    cell: Tensor
    weight: Tensor


def bilinear_corners(position: Tensor, width: int, height: int) -> Corners:
    """The four cells of a map around each position, and their bilinear weights.

    Args:
        position: position (x, y) in cells, with integers at the centers of cells.
        width: number of columns of the map.
        height: number of rows of the map.

    Shape:
        ``position`` [..., J, 2].

    Returns:
        Indices into the map, flattened row by row, and weights. Cells outside of the map have weight zero.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.sampling import bilinear_corners
        >>> corners = bilinear_corners(torch.tensor([[0.25, 0.0]]), width=2, height=1)
        >>> corners.weight.tolist()
        [[0.75, 0.25, 0.0, 0.0]]
    """
    check_floating("position", position)
    if position.shape[-1:] != (2,):
        raise ValueError(f"position must have shape [..., J, 2], got {list(position.shape)}")
    check_size("width", width)
    check_size("height", height)
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
    """Sample maps at positions: the sum of weight times cell over the four corners.

    Args:
        maps: flattened maps.
        corners: corners of the positions, from :func:`bilinear_corners`.

    Shape:
        ``maps`` [L, cells, C], ``corners`` [L, J, 4].

    Returns:
        Samples [L, J, C].
    """
    check_floating("maps", maps)
    check_type("corners", corners, Corners, "Corners (see bilinear_corners)")
    check_shape("maps", maps, "L cells C")
    # Autocast would round the weights of an einsum.
    return (read_cells(maps, corners.cell) * corners.weight[..., None]).sum(2)


def read_cells(maps: Tensor, cell: Tensor) -> Tensor:
    """Read cells of maps.

    Args:
        maps: flattened maps.
        cell: flat indices of cells.

    Shape:
        ``maps`` [L, cells, C], ``cell`` [L, ...].

    Returns:
        The cells [L, ..., C].

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.sampling import read_cells
        >>> read_cells(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).tolist()
        [[[2.0]], [[3.0]]]
    """
    # The gradient of an embedding is always added in the same order, that of an index is not.
    count, cells, _ = maps.shape
    row = cell.flatten(1) + cells * torch.arange(count, device=cell.device)[:, None]
    return embedding(row.view(cell.shape), maps.flatten(0, 1))


def bilinear_spread(values: Tensor, corners: Corners, cells: int) -> Tensor:
    """Spread values onto the four cells around their positions: the transpose of :func:`bilinear_sample`.

    Args:
        values: one value per position.
        corners: corners of the positions, from :func:`bilinear_corners`.
        cells: number of cells of the map.

    Shape:
        ``values`` [L, J], ``corners`` [L, J, 4].

    Returns:
        Flattened maps [L, cells].
    """
    check_floating("values", values)
    check_type("corners", corners, Corners, "Corners (see bilinear_corners)")
    check_size("cells", cells)
    check_shape("values", values, "L J", dict(zip("LJ", corners.cell.shape, strict=False)))
    shares = (values[..., None] * corners.weight).flatten(1)
    return shares.new_zeros(len(values), cells).scatter_add(1, corners.cell.flatten(1), shares)
