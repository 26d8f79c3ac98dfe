"""The attention map of a layer whose bags are sets, which have no places."""

from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from .attention import LazyAttention


@dataclass(frozen=True, eq=False)
class SetAttention(LazyAttention, parts=("scores", "mass_sums", "kept", "keys", "context_mask")):
    """The attention map of one layer whose bags are sets. Gradients flow through it.

    Attributes:
        scores: queries [B, H, N, D], keys [B, H, J, D] and the mask of the queries.
        mass_sums: the attention mass of each key, summed over the real queries [B, H, J].
        kept: None; :meth:`weights` computes the dense map.
        keys: index of the context token of every key [B, J]; None where key j is token j.
        context_mask: mask of the context tokens [B, M] (True = real token).

    Example:
        >>> import torch
        >>> from disentangled_mil import DeformableCrossAttention
        >>> layer = DeformableCrossAttention(32, heads=4, dim_head=8, groups=2, max_keys=10)
        >>> attention = layer(torch.randn(1, 100, 32), torch.randn(1, 100, 32)).attention
        >>> attention.weights().shape, attention.mass().shape, (attention.mass() > 0).sum().item()
        (torch.Size([1, 4, 100, 10]), torch.Size([1, 100]), 10)
    """

    keys: Tensor | None
    context_mask: Tensor

    #: Maps of sets are never compared entry by entry.
    full = False

    def head_mass(self) -> Tensor:
        """The attention mass of each context token, head by head [B, H, M]; sums to one, padding has none."""
        mass = self.key_mass()  # [B, H, J]
        if self.keys is None:
            return mass
        batch, heads, _ = mass.shape
        empty = mass.new_zeros(batch, heads, self.context_mask.shape[1])
        return empty.scatter_add(2, self.keys[:, None].expand(-1, heads, -1), mass)

    def mass(self) -> Tensor:
        """The attention mass of each context token, the mean of :meth:`head_mass` over heads [B, M]."""
        return self.head_mass().mean(1)

    def vectors(self, resolution: int | None) -> NoReturn:
        """Refuse to compare maps.

        Args:
            resolution: cells along each side of a common grid.

        Raises:
            ValueError: always, as sets have no places in common.
        """
        self.common_grid(resolution or 1)

    def common_grid(self, resolution: int) -> NoReturn:
        """Refuse to lay the attention out on a grid.

        Args:
            resolution: cells along each side of the grid.

        Raises:
            ValueError: always, as a set has no places.
        """
        raise ValueError(
            "attention must lie on grids to be compared, got bags without coordinates, which have no places in common: "
            "leave the consistency loss out, or lay bags out by Grid.from_coords or Grid.square"
        )
