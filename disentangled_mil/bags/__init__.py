"""What a slide is to every layer: patch tokens, and the grid on which they lie or none."""

from ._cells import lattice_step
from ._grid_for import grid_for
from .bag import Bag, collate_bags, collate_samples
from .grid import Grid
from .masks import mask_from, mask_to
from .pairing import TilePairs, pair_magnifications
from .spreading import spread_rows, thin, widening
from .token_set import TokenSet

__all__ = [
    "Bag",
    "Grid",
    "TilePairs",
    "TokenSet",
    "collate_bags",
    "collate_samples",
    "grid_for",
    "lattice_step",
    "mask_from",
    "mask_to",
    "pair_magnifications",
    "spread_rows",
    "thin",
    "widening",
]
