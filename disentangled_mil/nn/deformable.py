"""Deformable cross-attention: queries attend to context sampled at positions that they choose."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_count, check_flag, check_floating, check_interval, check_shape
from .._precision import widened
from ..bags import Grid, TokenSet, grid_for
from ..ops import AttentionOutput, AttentionScores, MLPBias, bilinear_sample
from ..ops.attention import BACKENDS
from .attention import DeformableAttention, is_small
from .offsets import OffsetNetwork
from .position_bias import ContinuousPositionBias
from .positions import CellCenters, Place, Positions
from .reference_points import ReferencePoints
from .set_attention import SetAttention
from .set_keys import set_keys
from .unused import with_zero_gradients


class DeformableOutput(NamedTuple):
    """What :class:`DeformableCrossAttention` returns.

    Attributes:
        tokens: [B, N, C], without the residual; zeros for padding.
        attention: the lazy attention map.
    """

    tokens: Tensor
    attention: DeformableAttention | SetAttention


class DeformableCrossAttention(nn.Module):
    """Cross-attention to context tokens that are sampled at learned positions.

    Reference points p lie evenly over the queries. A small network reads the queries around each point and moves it
    by dp = offset_scale tanh(Psi(q)). Context is sampled bilinearly at p + dp, and ::

        out = softmax(Q K^T / sqrt(d) + bias(q_pos - k_pos)) V.

    Holes and padding take no part. A sample is the mean of the real cells around its position, and a position that
    lies half in a hole counts half. If all positions of a group lie in holes, they sample the nearest tissue.

    N tokens have N / downsample^2 keys, and attention costs their product. The cap ``max_keys`` makes the cost linear
    for large bags: their reference points lie further apart, and those without tissue are left out. The default
    leaves bags of up to 16,000 tokens as they are if tissue fills at least a quarter of their rectangle.

    Without grids, bags are sets. Then the keys are context tokens, without offsets and without a position bias:
    ``out = softmax(Q K^T / sqrt(d)) V``. The results do not depend on the order of the tokens.

    Args:
        dim: token width C.
        heads: attention heads H.
        dim_head: width D of a head.
        groups: offset groups; each samples its own positions for its own heads and channels.
        downsample: cells per reference point along each axis (r). An axis with fewer cells than the kernel has a
            point per cell.
        kernel_size: side of the window of the offset network in cells; ``downsample + 2`` by default.
        offset_scale: largest offset, in distances between reference points.
        dropout: probability of dropping an attention weight.
        positions: convention of positions, :class:`~disentangled_mil.nn.CellCenters` by default, which is right for
            any rectangle; :class:`~disentangled_mil.models.released.ReleasedPositions` for released checkpoints.
        bias: kind of the position bias. ``"table"`` interpolates its network between 129 x 129 displacements, off by
            at most :meth:`BiasTable.error_bound <disentangled_mil.ops.BiasTable.error_bound>`; ``"exact"`` evaluates
            the network for every query and key, which takes several times longer.
        max_keys: cap on reference points, or None for any number. A bag is thinned if its points times the share of
            its cells with tissue exceed the cap, or if it has more than 4 ``max_keys`` points. A thinned bag has at
            most this many points; other bags have at most four times as many. A set of more tokens has this many of
            them as keys.
        keep_weights: flag that keeps maps of at most 4 ``dim_head`` sampled keys when gradients are needed. Then
            ``attention.weights()`` and ``attention.vectors()`` (the consistency loss) need not compute them again.
        backend: implementation of :func:`~disentangled_mil.ops.biased_attention`.

    Shape:
        ``query`` [B, N, C], ``context`` [B, M, C], grids of B bags (or of one, for all).

    Raises:
        TypeError: tokens are not floating-point, or ``positions`` is no convention.
        ValueError: shapes disagree or an option is out of range.

    Source:
        Eqs 1-3 of the paper; DAT, Xia et al., CVPR 2022.

    Differs from the source:
        Bags may be unequal, have any rectangle, also one of a single cell, and have holes. Positions are measured from
        cell centers and kept inside of the rectangle of the bag. The position bias is interpolated, and keys are
        capped.

    Example:
        >>> import torch
        >>> from disentangled_mil import DeformableCrossAttention, Grid
        >>> layer = DeformableCrossAttention(32, heads=4, dim_head=8, groups=2)
        >>> genes, patches = torch.randn(2, 1, 32).expand(-1, 100, -1), torch.randn(2, 100, 32)
        >>> out = layer(genes, patches, Grid.square(100))
        >>> out.tokens.shape, out.attention.weights().shape, out.attention.mass().shape
        (torch.Size([2, 100, 32]), torch.Size([2, 4, 100, 4]), torch.Size([2, 100]))
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        groups: int = 8,
        downsample: int = 4,
        kernel_size: int | None = None,
        offset_scale: float = 4.0,
        dropout: float = 0.1,
        positions: Positions | None = None,
        bias: str = "table",
        max_keys: int | None = 1000,
        keep_weights: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("downsample", downsample)
        kernel_size = downsample + 2 if kernel_size is None else kernel_size
        for name, value in {"dim": dim, "heads": heads, "dim_head": dim_head, "groups": groups}.items():
            check_count(name, value)
        check_count("kernel_size", kernel_size, downsample)
        if (kernel_size - downsample) % 2:
            raise ValueError(
                f"kernel_size must differ from downsample = {downsample} by an even number, got {kernel_size}"
            )
        for name, value in {"dim": dim, "heads": heads}.items():
            if value % groups:
                raise ValueError(f"{name} must be a multiple of groups = {groups}, got {value}")
        check_interval("offset_scale", offset_scale, 0, float("inf"))
        check_interval("dropout", dropout, 0, 1)
        check_choice("bias", bias, ("exact", "table"))
        positions = CellCenters() if positions is None else positions
        if not isinstance(positions, Positions):
            raise TypeError(f"positions must be a convention of positions (Positions), got {type(positions).__name__}")
        if max_keys is not None:
            check_count("max_keys", max_keys)
        positions.check_options(bias=bias, max_keys=max_keys)
        check_flag("keep_weights", keep_weights)
        check_choice("backend", backend, BACKENDS)
        self.dim, self.heads, self.dim_head, self.groups = dim, heads, dim_head, groups
        self.downsample, self.kernel_size, self.offset_scale = downsample, kernel_size, offset_scale
        self.dropout, self.positions, self.backend = dropout, positions, backend
        self.bias, self.max_keys, self.keep_weights = bias, max_keys, keep_weights
        inner = heads * dim_head
        self.to_q = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_k = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_v = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.to_offsets = OffsetNetwork(inner // groups, kernel_size)
        self.position_bias = ContinuousPositionBias(max(1, dim // 4), heads // groups)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_grid: Grid | TokenSet | None = None,
        context_grid: Grid | TokenSet | None = None,
        *,
        mask: Tensor | None = None,
    ) -> DeformableOutput:
        """Attend from query tokens to context tokens.

        Args:
            query: query tokens.
            context: context tokens.
            query_grid: grid of the queries, or a set of them; a set without padding by default.
            context_grid: grid or set of the context; that of the queries by default (the same tokens at the same
                places). A displacement needs two places: if either is a set, both are taken as sets.
            mask: mask of sets [B, N], of query and context, instead of grids (True = real token).

        Returns:
            Tokens without the residual, and the lazy attention map.
        """
        sizes = check_shape("query", query, "B N C", {"C": self.dim})
        check_shape("context", context, "B M C", {"B": sizes["B"], "C": self.dim})
        check_floating("query", query)
        check_floating("context", context)
        query_grid = grid_for(query, query_grid, mask, "query_grid")
        if mask is not None and context_grid is not None:
            raise ValueError("mask stands for both grids: give either mask or context_grid, not both")
        if context_grid is None:
            if context.shape[1] != query.shape[1]:
                raise ValueError(
                    f"context must have the number of tokens of query, {query.shape[1]}, or a context_grid of its own, "
                    f"got {context.shape[1]}"
                )
            context_grid = query_grid
        context_grid = grid_for(context, context_grid, None, "context_grid")
        real = query_grid.mask[..., None]
        query = torch.where(real, query, 0).to(self.to_q.weight.dtype)
        q = self._project(self.to_q, _split_groups(query, self.groups))  # [B, G, N, I D]
        out, attention = (
            self._attend_on_grids(q, context, query_grid, context_grid)
            if isinstance(query_grid, Grid) and isinstance(context_grid, Grid)
            else self._attend_in_sets(q, context, query_grid.mask, context_grid.mask)
        )
        return DeformableOutput(torch.where(real, self.to_out(_merge_groups(out)), 0), attention)

    def _attend_on_grids(
        self, q: Tensor, context: Tensor, query_grid: Grid, context_grid: Grid
    ) -> tuple[Tensor, DeformableAttention]:
        """Attend to context sampled at positions that queries [B, G, N, I D] choose; [B, H, N, D] and the map."""
        keys = self._sample(q, query_grid, context, context_grid)
        k, v = self._project(self.to_k, keys.tokens), self._project(self.to_v, keys.tokens)
        query_position = self.positions.normalize(
            query_grid.cells.to(keys.place.normalized.dtype), query_grid.sizes[:, None]
        )
        # The weights are copied, so that the optimizer's next step does not change the attention map.
        bias = (
            self.position_bias.table()
            if self.bias == "table"
            else MLPBias(*(part.clone() for part in self.position_bias.weights()))
        )
        scores = AttentionScores(
            query=self._heads(q),
            key=self._heads(k),
            query_position=query_position,
            key_position=keys.place.normalized,
            bias=bias,
            key_logit=keys.logit,
            query_mask=query_grid.mask,
        )
        keep = self.keep_weights and torch.is_grad_enabled() and is_small(scores)
        attended = self._attend(scores, v, keep)
        attention = DeformableAttention(
            scores=scores,
            mass_sums=attended.mass,
            kept=attended.weights,
            coarse_positions=keys.coarse_positions,
            sampling_positions=keys.place.cells,
            query_grid=query_grid,
            context_grid=context_grid,
            positions=self.positions,
        )
        return attended.out, attention

    def _attend_in_sets(
        self, q: Tensor, context: Tensor, query_mask: Tensor, context_mask: Tensor
    ) -> tuple[Tensor, SetAttention]:
        """Attend to context tokens, whatever their order, from queries [B, G, N, I D]; [B, H, N, D] and the map."""
        self.positions.check_sets()
        keys = set_keys(context, context_mask, self.max_keys)
        tokens = _split_groups(keys.tokens.to(self.to_k.weight.dtype), self.groups)
        k, v = self._project(self.to_k, tokens), self._project(self.to_v, tokens)
        v = with_zero_gradients(v, self.to_offsets, self.position_bias)
        # Positions do not matter without a bias.
        logit = q.new_zeros(keys.mask.shape, dtype=torch.float32).masked_fill(~keys.mask, -torch.inf)
        scores = AttentionScores(
            query=self._heads(q),
            key=self._heads(k),
            query_position=q.new_zeros(q.shape[0], q.shape[2], 2),
            key_position=q.new_zeros(q.shape[0], 1, k.shape[2], 2),
            key_logit=logit[:, None],
            query_mask=query_mask,
        )
        attended = self._attend(scores, v, keep=False)
        attention = SetAttention(
            scores=scores,
            mass_sums=attended.mass,
            kept=attended.weights,
            keys=keys.chosen,
            context_mask=context_mask,
        )
        return attended.out, attention

    def _attend(self, scores: AttentionScores, v: Tensor, keep: bool) -> AttentionOutput:
        """Attend to values [B, G, J, I D]."""
        dropout = self.dropout if self.training else 0.0
        return scores.attend(self._heads(v), dropout=dropout, keep_weights=keep, backend=self.backend)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Channels by head [B, G, N, I D] -> [B, H, N, D]."""
        return torch.unflatten(tokens, 3, (-1, self.dim_head)).transpose(2, 3).flatten(1, 2)

    def _sample(self, q: Tensor, query_grid: Grid, context: Tensor, grid: Grid) -> "_Keys":
        """Context at the positions that queries [B, G, N, I D] choose."""
        points = self.positions.reference_points(query_grid, self.downsample, self.kernel_size, self.max_keys)
        offset = self.to_offsets(query_grid.cell_means(q), points.window)  # [B, G, J, 2]
        # Positions keep float32 under autocast: rounded to bfloat16 they would jump by a quarter of a cell.
        coarse_positions = points.position[:, None] + widened(offset).tanh() * self.offset_scale
        normalized = self.positions.normalize(coarse_positions, points.size[:, None, None])
        place = self.positions.place(normalized, grid)
        by_group = _split_groups(context.to(place.cells.dtype), self.groups)
        corners, share = self.positions.corners(grid, place.cells)
        sampled = bilinear_sample(grid.cell_means(by_group).flatten(0, 1), corners)  # [B G, J, C / G]
        tokens, share = (torch.unflatten(x, 0, (-1, self.groups)) for x in (sampled, share))
        return _Keys(tokens.to(self.to_k.weight.dtype), _logit(share, points, grid), coarse_positions, place)

    def _project(self, layer: nn.Conv1d, tokens: Tensor) -> Tensor:
        """A grouped convolution of width one, group by group [B, G, N, C / G] -> [B, G, N, inner / G]."""
        weight = torch.unflatten(layer.weight.squeeze(2), 0, (self.groups, -1)).transpose(1, 2)  # [G, C / G, inner / G]
        return tokens @ weight

    def extra_repr(self) -> str:
        """Options as given."""
        return (
            f"{self.dim}, heads={self.heads}, dim_head={self.dim_head}, groups={self.groups}, "
            f"downsample={self.downsample}, kernel_size={self.kernel_size}, offset_scale={self.offset_scale}, "
            f"dropout={self.dropout}, positions={self.positions!r}, "
            f"bias={self.bias!r}, max_keys={self.max_keys}, "
            f"keep_weights={self.keep_weights}, backend={self.backend!r}"
        )


class _Keys(NamedTuple):
    """Sampled keys before they are projected.

    Attributes:
        tokens: context at the sampling positions [B, G, J, C / G].
        logit: log of the tissue share of every key; -inf takes the key out [B, G, J].
        coarse_positions: sampling positions in cells of the coarse grid [B, G, J, 2].
        place: sampling positions on the context grid.
    """

    tokens: Tensor
    logit: Tensor
    coarse_positions: Tensor
    place: Place


def _logit(share: Tensor, points: ReferencePoints, grid: Grid) -> Tensor:
    """Log of the tissue share [B, G, J]; keys in holes count only where a group has no other."""
    own = points.mask[:, None]
    touches = (share > 0) & own
    stranded = own & ~touches.any(-1, keepdim=True) & grid.mask.any(1)[:, None, None]
    return torch.where(touches, torch.where(touches, share, 1).log(), torch.where(stranded, 0.0, -torch.inf))


def _split_groups(tokens: Tensor, groups: int) -> Tensor:
    """Channels of tokens by group [B, N, G D] -> [B, G, N, D]."""
    # einops is not used here, because torch.compile traces how it reads a pattern: half of the tracing of a layer.
    return torch.unflatten(tokens, 2, (groups, -1)).transpose(1, 2)


def _merge_groups(tokens: Tensor) -> Tensor:
    """The opposite of _split_groups [B, G, N, D] -> [B, N, G D]."""
    return tokens.transpose(1, 2).flatten(2)
