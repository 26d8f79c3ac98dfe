"""What a slide is to every layer: patch tokens and the grid on which they lie."""

from .bag import Bag, collate_bags
from .grid import Grid, grid_for

__all__ = ["Bag", "Grid", "collate_bags", "grid_for"]
