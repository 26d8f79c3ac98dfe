"""Pairs of tiles of two magnifications that show the same tissue."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .._checks import check_interval, check_shape


class TilePairs(NamedTuple):
    """Pairs of tiles of two magnifications, in the order of the first and then of the second.

    Attributes:
        first: row of the tile in the first magnification [P].
        second: row of the tile in the second magnification [P].
    """

    first: Tensor
    second: Tensor


def pair_magnifications(coords_a: Tensor, size_a: float, coords_b: Tensor, size_b: float) -> TilePairs:
    """Pair the tiles of two magnifications of one slide that show the same tissue.

    A pair is a larger tile and a smaller tile whose center lies in it, its left and upper side included. A tile may
    have any number of partners: none where only one magnification found tissue, several where tiles overlap. Nothing
    is assumed of the lattices, which need not have the same origin.

    Args:
        coords_a: (x, y) of the upper left corner of every tile of the first magnification, in level-0 pixels or in
            another unit that both share.
        size_a: side of these tiles in the same unit.
        coords_b: the same of the second magnification.
        size_b: side of its tiles.

    Shape:
        ``coords_a`` [N, 2], ``coords_b`` [M, 2].

    Returns:
        P pairs on the device of ``coords_a``.

    Raises:
        TypeError: coordinates are no tensor, or a size is no number.
        ValueError: coordinates have another shape or are not finite, or a size is not positive.

    Source:
        None; the paper's two magnifications have equal numbers of patches, which are not paired.

    Example:
        >>> import torch
        >>> from disentangled_mil.bags import pair_magnifications
        >>> at_10x = torch.tensor([[0, 0], [896, 0]])
        >>> at_20x = torch.tensor([[0, 0], [448, 448], [896, 0], [0, 896]])
        >>> pairs = pair_magnifications(at_10x, 896, at_20x, 448)
        >>> pairs.first.tolist(), pairs.second.tolist()
        ([0, 0, 1], [0, 1, 2])
    """
    arguments = (("coords_a", coords_a, "size_a", size_a), ("coords_b", coords_b, "size_b", size_b))
    for name, coords, size_name, size in arguments:
        check_shape(name, coords, "N 2")
        check_interval(size_name, size, 0, float("inf"), open_low=True)
        if not torch.isfinite(coords).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if size_a < size_b:
        pairs = pair_magnifications(coords_b, size_b, coords_a, size_a)
        order = torch.argsort(pairs.second, stable=True)
        return TilePairs(pairs.second[order].to(coords_a.device), pairs.first[order].to(coords_a.device))
    corners, centers = coords_a.double().cpu().numpy(), coords_b.double().cpu().numpy() + size_b / 2
    if not len(corners) or not len(centers):
        none = torch.zeros(0, dtype=torch.int64, device=coords_a.device)
        return TilePairs(none, none)
    near = cKDTree(centers).query_ball_point(corners + size_a / 2, size_a / 2, p=np.inf, return_sorted=True)
    first = np.repeat(np.arange(len(corners)), [len(rows) for rows in near])
    second = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in near])
    # The search includes the right and lower side, which belong to the next tile.
    inside = (centers[second] < corners[first] + size_a).all(axis=1)
    chosen = (torch.from_numpy(rows[inside]).to(coords_a.device) for rows in (first, second))
    return TilePairs(*chosen)
