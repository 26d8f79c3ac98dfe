"""The interface of a position bias that attention evaluates for one tile of queries after the other."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from ._network import MLPBias
    from ._table import BiasTable


class BiasWanted(NamedTuple):
    """Which gradients the backward pass of a tile needs: those of the bias, of query and of key positions."""

    bias: bool
    queries: bool
    keys: bool


class BiasTile(Protocol):
    """The biases between a tile of t queries and all J keys of each of G groups, I heads in each group."""

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""

    def backward(self, gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the positions of the queries [t, 2] and of the keys [G, J, 2]; None where not wanted.

        The gradient of the bias itself is added to that of the :class:`TiledBias` which made the tile.

        Args:
            gradient: gradient of the biases [G, I, t, J].
            wanted: gradients that are needed.

        Returns:
            The gradients of the positions.
        """


class TiledBias(Protocol):
    """A position bias, and the sum of the gradients that its tiles have passed back."""

    @property
    def most_pairs(self) -> float:
        """The number of pairs of a query and a key above which a tile becomes slower or too large."""

    def tile(self, queries: Tensor, keys: Tensor) -> BiasTile:
        """The biases between queries at [t, 2] and keys at [G, J, 2]; no position may be NaN."""

    def gradient(self) -> "MLPBias | BiasTable":
        """The gradient of the bias; to be called once, after the backward passes of all tiles."""


def position_gradients(gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of queries [t, 2] and keys [G, J, 2] from that of the displacements query - key [G, t, J, 2]."""
    return gradient.sum((0, 2)) if wanted.queries else None, -gradient.sum(1) if wanted.keys else None
