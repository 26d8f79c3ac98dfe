"""Tissue on a small picture of a slide, and its share of every tile."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import check_shape

_PALEST, _DEEPEST = 15, 30  # of 255: glass has less than the first, most stained tissue more than the second


def tissue_mask(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is colored.

    A pixel is tissue if the largest of its three colors exceeds the smallest by more than a threshold. The threshold is
    that of Otsu's method, but at least 15 and at most 30 of 255. So a picture of glass alone has no tissue, and one of
    tissue alone is not split. Glass, gray dirt and black marks are no tissue. Colored ink counts as tissue.

    Args:
        picture: colors [H, W, 3], at about 8 micrometers per pixel.

    Returns:
        True where there is tissue [H, W].

    Source:
        Otsu (1979), "A threshold selection method from gray-level histograms".

    Example:
        >>> import numpy as np
        >>> from disentangled_mil.extract import tissue_mask
        >>> tissue_mask(np.array([[[250, 249, 251], [220, 150, 190], [20, 20, 20]]], dtype=np.uint8)).tolist()
        [[False, True, False]]
    """
    color: NDArray[np.uint8] = picture.max(axis=-1) - picture.min(axis=-1)
    threshold: int = np.clip(_otsu(color), _PALEST, _DEEPEST)
    return color > threshold


def _otsu(values: NDArray[np.uint8]) -> int:
    """The threshold with the largest variance between the values up to it and those above."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    difference = sums[-1] * below - sums * below[-1]
    spread = np.divide(difference**2, below * above, out=np.zeros(256), where=below * above > 0)
    return int(spread.argmax())


def tissue_share(mask: NDArray[np.bool_], scale: float, corners: Tensor, side: float) -> Tensor:
    """The share of every tile that is tissue.

    Args:
        mask: mask of the tissue [H, W] (True = tissue).
        scale: level-0 pixels per pixel of the mask.
        corners: upper left corners (x, y) of the tiles in level-0 pixels.
        side: side of the tiles in level-0 pixels.

    Shape:
        ``corners`` [N, 2].

    Returns:
        Shares [N] between 0 and 1, of the pixels of the mask that a tile covers; their sides are rounded.

    Raises:
        ValueError: ``corners`` has another shape.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from disentangled_mil.extract import tissue_share
        >>> mask = np.array([[True, False, False, False], [True, True, False, False]])
        >>> tissue_share(mask, 10, torch.tensor([[0, 0], [20, 0]]), 20).tolist()
        [0.75, 0.0]
    """
    check_shape("corners", corners, "N 2")
    sums = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1, dtype=torch.int64)
    sums[1:, 1:] = torch.from_numpy(mask).cumsum(0).cumsum(1)
    most = torch.tensor([mask.shape[1], mask.shape[0]])
    low = (corners / scale).round().long().minimum(most - 1)
    high = ((corners + side) / scale).round().long().maximum(low + 1).minimum(most)
    (left, top), (right, bottom) = low.T, high.T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside.div((right - left) * (bottom - top))
