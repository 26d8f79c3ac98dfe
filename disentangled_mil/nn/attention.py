"""The attention map of a deformable layer: a lazy value, dense only for those who ask.

Two maps are compared by their inner product, in one of two ways. Small maps of full bags of one size have entries at
the same places and are compared entry by entry. All others are compared by the attention mass of their keys on a grid
of 16 x 16 cells that all bags share. The forward pass computes this mass anyway.
"""

from dataclasses import dataclass
from typing import Any

from einops import rearrange
from torch import Tensor

from .._checks import check_count
from .._collection import TensorCollection
from ..bags import Grid
from ..ops import AttentionScores, Corners, bilinear_corners, bilinear_spread
from .positions import CellCenters, Positions

COMMON_RESOLUTION = 16  # Cells along each side of the common grid.
# A map is small if a row holds at most this number times D entries.
_SMALL = 4


def is_small(scores: AttentionScores) -> bool:
    """Whether a map is worth keeping: at most 4 D keys, so that it takes no more memory than 4 times the queries."""
    return scores.key.shape[2] <= _SMALL * scores.key.shape[3]


@dataclass(frozen=True, eq=False)
class LazyAttention(TensorCollection):
    """What attention maps have in common, with or without places.

    Attributes:
        scores: input of the softmax: queries [B, H, N, D], keys [B, H, J, D] and the mask of the queries.
        mass_sums: the attention mass of each key, summed over the real queries [B, H, J].
        kept: the dense map [B, H, N, J] where the operator keeps it anyway, else None.
    """

    scores: AttentionScores
    mass_sums: Tensor
    kept: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, N, J) of the dense map."""
        batch, heads, queries, _ = self.scores.query.shape
        return batch, heads, queries, self.scores.key.shape[2]

    def weights(self) -> Tensor:
        """The dense map [B, H, N, J], before dropout; rows of padded queries are zero."""
        return self.scores.weights() if self.kept is None else self.kept

    def resolution_with(self, other: Any) -> int | None:
        """The resolution at which these maps and others are compared by default; None where there is no choice."""
        return None

    def key_mass(self) -> Tensor:
        """The attention mass of each key [B, H, J]: the mean over the real queries of a bag."""
        mask = self.scores.query_mask
        return self.mass_sums / (self.shape[2] if mask is None else mask.sum(1).clamp(min=1)[:, None, None])


@dataclass(frozen=True, eq=False)
class DeformableAttention(
    LazyAttention,
    parts=(
        "scores",
        "mass_sums",
        "kept",
        "coarse_positions",
        "sampling_positions",
        "query_grid",
        "context_grid",
    ),
    constants=("positions",),
):
    """The attention map of one deformable layer, as queries, keys and positions. Gradients flow through it.

    Attributes:
        scores: queries [B, H, N, D], sampled keys [B, H, J, D], their normalized positions, the position bias, the
            log of the tissue under each key (-inf takes a key out) and the mask of the queries.
        mass_sums: attention mass of each sampled key, summed over the real queries [B, H, J].
        kept: dense map [B, H, N, J] if the layer kept it, else None.
        coarse_positions: sampling positions in cells of the coarse reference grid [B, G, J, 2] (p + dp).
        sampling_positions: sampling positions in cells of the context grid [B, G, J, 2].
        query_grid: grid of the queries.
        context_grid: grid of the context tokens.
        positions: convention of the layer, which says from which cells a key was sampled.

    Example:
        >>> import torch
        >>> from disentangled_mil import DeformableCrossAttention, Grid
        >>> layer = DeformableCrossAttention(32, heads=4, dim_head=8, groups=2)
        >>> attention = layer(torch.randn(1, 100, 32), torch.randn(1, 100, 32), Grid.square(100)).attention
        >>> attention.weights().shape, attention.common_grid(3).shape
        (torch.Size([1, 4, 100, 4]), torch.Size([1, 4, 9]))
    """

    coarse_positions: Tensor
    sampling_positions: Tensor
    query_grid: Grid
    context_grid: Grid
    positions: Positions = CellCenters()  # noqa: RUF009  (immutable)

    @property
    def full(self) -> bool:
        """Whether all bags fill one and the same rectangle, so that flattened maps can be compared entry by entry."""
        return self.query_grid.full and self.context_grid.full

    def resolution_with(self, other: "DeformableAttention") -> int | None:
        """The resolution at which these maps and others are compared by default.

        Args:
            other: maps of the same numbers of bags and heads.

        Returns:
            Cells along each side of the common grid: 16. None if maps are compared entry by entry, which holds for
            full maps of equal shape that have at most 4 D keys.
        """
        small = self.shape == other.shape and is_small(self.scores) and is_small(other.scores)
        return None if small and self.full and other.full else COMMON_RESOLUTION

    def vectors(self, resolution: int | None) -> Tensor:
        """The maps as vectors whose inner products are compared: all entries, or the mass on a common grid.

        Args:
            resolution: cells along each side of the common grid; None for all entries.

        Returns:
            [B, H N J] or [B, H resolution^2].

        Raises:
            ValueError: ``resolution`` is not positive.
        """
        return (self.weights() if resolution is None else self.common_grid(resolution)).flatten(1)

    def head_mass(self) -> Tensor:
        """The attention mass of each context token, head by head; padding has none.

        The attention mass of a key goes to the cells that it was sampled from, and there in equal parts to the tokens
        of a cell.

        Returns:
            [B, H, M]; sums to one per head. By the released convention, the attention mass of keys outside of the map
            is lost.
        """
        grid = self.context_grid
        heads, groups = self.mass_sums.shape[1], self.sampling_positions.shape[1]
        corners, _ = self.positions.corners(grid, self.sampling_positions)
        per_head = Corners(*(part.repeat_interleave(heads // groups, dim=0) for part in corners))
        spread = bilinear_spread(self.key_mass().flatten(0, 1), per_head, grid.width * grid.height)
        cells = rearrange(spread, "(b h) c -> b h c", h=heads) / grid.count.clamp(min=1)[:, None]
        index = grid.cells[..., 1] * grid.width + grid.cells[..., 0]
        return cells.gather(2, index[:, None].expand(-1, heads, -1)) * grid.mask[:, None]

    def mass(self) -> Tensor:
        """The attention mass of each context token, the mean of :meth:`head_mass` over heads [B, M]."""
        return self.head_mass().mean(1)

    def common_grid(self, resolution: int) -> Tensor:
        """The map reduced to the attention mass of its keys on a grid that all bags and magnifications share.

        Args:
            resolution: cells along each side of the bag's rectangle.

        Returns:
            [B, H, resolution * resolution], row by row; sums to one per head.

        Raises:
            ValueError: ``resolution`` is not positive.
        """
        check_count("resolution", resolution)
        heads, key_position = self.mass_sums.shape[1], self.scores.key_position
        position = key_position.repeat_interleave(heads // key_position.shape[1], dim=1).flatten(0, 1)
        cell = ((position + 1) * resolution - 1) / 2
        corners = bilinear_corners(cell.clamp(0, resolution - 1), resolution, resolution)
        spread = bilinear_spread(self.key_mass().flatten(0, 1), corners, resolution**2)
        return rearrange(spread, "(b h) c -> b h c", h=heads)
