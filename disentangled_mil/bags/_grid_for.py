"""Grids and sets as callers give them to a layer: by themselves, by a mask, or not at all."""

import torch
from torch import Tensor

from .._checks import check_mask, check_shape
from .grid import Grid
from .token_set import TokenSet


def grid_for(tokens: Tensor, grid: Grid | TokenSet | None, mask: Tensor | None, name: str = "grid") -> Grid | TokenSet:
    """The grid or set of a batch of tokens.

    Args:
        tokens: tokens [B, N, C].
        grid: grid or set of the tokens.
        mask: mask of sets [B, N], instead of a grid (True = real token). The default is sets without padding.
        name: name of the grid in errors.

    Returns:
        A grid or set of B bags.
    """
    check_shape("tokens", tokens, "B N C")
    batch, count, _ = tokens.shape
    if grid is not None and mask is not None:
        raise ValueError(f"{name} already holds a mask: give either {name} or mask, not both")
    if grid is None:
        if mask is None:
            mask = torch.ones(batch, count, dtype=torch.bool, device=tokens.device)
        check_mask("mask", mask, "B N", {"B": batch, "N": count})
        return TokenSet(mask)
    if not isinstance(grid, (Grid, TokenSet)):
        raise TypeError(
            f"{name} must be a Grid (Grid.from_coords makes one of coordinates) or a TokenSet, "
            f"got {type(grid).__name__}"
        )
    grid = grid.expand(batch)
    check_shape(f"{name}.mask", grid.mask, "B N", {"B": batch, "N": count})
    return grid
