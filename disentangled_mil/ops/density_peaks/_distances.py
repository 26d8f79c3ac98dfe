"""What the clustering needs to know about the distances of a bag's tokens."""

from typing import Protocol

from torch import Tensor

# Tokens whose distance is at most this number of roundings of the spread of the bag are equally dense.
ROUNDINGS = 64


class Distances(Protocol):
    """Distances of the tokens [N, C] of a bag. ``nearest`` is called before ``gap``, which may use what it found."""

    def __init__(self, tokens: Tensor) -> None: ...

    def nearest(self, count: int) -> Tensor:
        """The smallest distances of every token to any token, itself included, ascending [N, count]."""
        ...

    def gap(self, rank: Tensor) -> Tensor:
        """Each token's distance [N] to the nearest of lower rank, meaning denser; for rank 0 the largest."""
        ...
