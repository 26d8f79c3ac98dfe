"""Deformable cross-attention: queries attend to context sampled at positions that they choose."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_count, check_floating, check_interval, check_shape
from .._precision import widened
from ..bags import Grid, grid_for
from ..ops import AttentionScores, MLPBias
from ..ops.attention import BACKENDS
from ..ops.sampling import bilinear_corners, bilinear_sample
from ..ops.windows import depthwise_windows
from .attention import DeformableAttention
from .position_bias import ContinuousPositionBias
from .tissue import tissue_corners

# Weights are worth keeping as long as a row of them is no longer than so many rows of keys.
_KEPT_ROWS = 4


class DeformableOutput(NamedTuple):
    """What :class:`DeformableCrossAttention` returns.

    Attributes:
        tokens: [B, N, C], without the residual; zeros for padding.
        attention: the lazy attention map.
    """

    tokens: Tensor
    attention: DeformableAttention


class DeformableCrossAttention(nn.Module):
    """Cross-attention to context tokens sampled at learned positions.

    A coarse grid of reference points p lies over the queries. A small network reads the queries around each
    point and moves it by dp = offset_scale tanh(Psi(q)). Context is sampled bilinearly at p + dp, and ::

        out = softmax(Q K^T / sqrt(d) + bias(q_pos - k_pos)) V.

    Holes and padding take no part: a sample is the mean of the real cells around its position, and a position
    that lies half in a hole counts half. Only if all positions of a group lie in holes, they sample the tissue
    that is nearest. Along an axis with fewer cells than the kernel, every cell is a
    reference point.

    Args:
        dim: token width C.
        heads: attention heads H.
        dim_head: width D of a head.
        groups: offset groups; each samples its own positions for its own heads and channels.
        downsample: cells per reference point along each axis (r).
        kernel_size: window of the offset network in cells; ``downsample + 2`` by default.
        offset_scale: largest offset, in cells of the coarse grid.
        dropout: of the attention weights.
        positions: ``"centered"`` measures positions from cell centers, right for any rectangle; ``"released"``
            reproduces the method's released checkpoints (normalized to the outermost cells, sampled as if to
            the outermost edges, zeros outside; full grids only).
        bias: ``"exact"`` evaluates the network of the position bias for every query and key; ``"table"`` interpolates
            it between 129 x 129 displacements, many times faster, and off by at most
            :meth:`BiasTable.error_bound <disentangled_mil.ops.BiasTable.error_bound>`.
        keep_weights: with gradients, keep the weights of maps of at most 4 ``dim_head`` sampled keys, so that
            ``attention.weights()`` and ``attention.overlap()`` (the consistency loss) need not compute them again.
        backend: of :func:`~disentangled_mil.ops.biased_attention`.

    Shape:
        ``query`` [B, N, C], ``context`` [B, M, C], grids of B bags (or of one, for all).

    Raises:
        TypeError: tokens are not floating-point.
        ValueError: shapes disagree or an option is out of range.

    Source: eqs 1-3 of the paper; DAT, Xia et al., CVPR 2022.
    Differs from the source: any rectangle with holes, unequal bags, rectangles of one cell; positions measured
    from cell centers and kept inside of the bag's rectangle.

    Example:
        >>> import torch
        >>> from disentangled_mil import DeformableCrossAttention
        >>> layer = DeformableCrossAttention(32, heads=4, dim_head=8, groups=2)
        >>> genes, patches = torch.randn(2, 1, 32).expand(-1, 100, -1), torch.randn(2, 100, 32)
        >>> out = layer(genes, patches)
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
        positions: str = "centered",
        bias: str = "exact",
        keep_weights: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        kernel_size = downsample + 2 if kernel_size is None else kernel_size
        for name, value in {"dim": dim, "heads": heads, "dim_head": dim_head, "groups": groups}.items():
            check_count(name, value)
        check_count("downsample", downsample)
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
        check_choice("positions", positions, ("centered", "released"))
        check_choice("bias", bias, ("exact", "table"))
        if bias == "table" and positions == "released":
            raise ValueError("bias='table' spans positions inside of the map: positions='released' needs bias='exact'")
        check_choice("backend", backend, BACKENDS)
        self.dim, self.heads, self.dim_head, self.groups = dim, heads, dim_head, groups
        self.downsample, self.kernel_size, self.offset_scale = downsample, kernel_size, offset_scale
        self.dropout, self.positions, self.backend = dropout, positions, backend
        self.tabulate, self.keep_weights = bias == "table", keep_weights
        inner = heads * dim_head
        self.to_q = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_k = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_v = nn.Conv1d(dim, inner, 1, groups=groups, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.to_offsets = OffsetNetwork(inner // groups, kernel_size)
        self.bias = ContinuousPositionBias(max(1, dim // 4), heads // groups)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_grid: Grid | None = None,
        context_grid: Grid | None = None,
        *,
        mask: Tensor | None = None,
    ) -> DeformableOutput:
        """Attend from query tokens to context tokens.

        Args:
            query: query tokens.
            context: context tokens.
            query_grid: where the queries lie; a square by default.
            context_grid: where the context lies; the query grid by default (the same tokens at the same places).
            mask: instead of grids, the real tokens of query and context alike, laid out on squares.

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
                    f"context must have as many tokens as query, {query.shape[1]}, or a context_grid of its own, "
                    f"got {context.shape[1]}"
                )
            context_grid = query_grid
        context_grid = grid_for(context, context_grid, None, "context_grid")
        if self.positions == "released" and not (query_grid.full and context_grid.full):
            raise ValueError("positions='released' needs grids that every bag fills row by row, without padding")
        real = query_grid.mask[..., None]

        query = torch.where(real, query, 0).to(self.to_q.weight.dtype)
        q = self._project(self.to_q, _apart(query, self.groups))  # [B, G, N, I D]
        centered = self.positions == "centered"
        coarse = CoarseGrid.over(query_grid, self.downsample, self.kernel_size, centered=centered)
        offset = self._offsets(q, query_grid, coarse)  # [B, G, J, 2]
        coarse_positions = coarse.position[:, None] + offset
        key_position, sampling_positions = self._place(coarse_positions, coarse, context_grid)
        sampled, key_logit = self._sample(context, context_grid, sampling_positions, coarse)
        sampled = sampled.to(self.to_k.weight.dtype)
        k, v = self._project(self.to_k, sampled), self._project(self.to_v, sampled)
        # [B, H, N, D]
        q, k, v = (torch.unflatten(x, 3, (-1, self.dim_head)).transpose(2, 3).flatten(1, 2) for x in (q, k, v))
        query_position = self._normalize(query_grid.cells.to(key_position.dtype), query_grid.sizes[:, None])
        # Copies, so that an attention map is still its own after the optimizer's next step.
        bias = self.bias.table() if self.tabulate else MLPBias(*(part.clone() for part in self.bias.weights()))
        scores = AttentionScores(q, k, query_position, key_position, bias, key_logit, query_grid.mask)
        dropout = self.dropout if self.training else 0.0
        keep = self.keep_weights and torch.is_grad_enabled() and k.shape[2] <= _KEPT_ROWS * self.dim_head
        attended = scores.attend(v, dropout=dropout, keep_weights=keep, backend=self.backend)
        tokens = self.to_out(_together(attended.out))
        attention = DeformableAttention(
            scores,
            attended.mass,
            attended.weights,
            coarse_positions,
            sampling_positions,
            query_grid,
            context_grid,
            self.positions == "released",
        )
        return DeformableOutput(torch.where(real, tokens, 0), attention)

    def _project(self, layer: nn.Conv1d, tokens: Tensor) -> Tensor:
        """A grouped convolution of width one, group by group [B, G, N, C / G] -> [B, G, N, inner / G]."""
        weight = torch.unflatten(layer.weight.squeeze(2), 0, (self.groups, -1)).transpose(1, 2)  # [G, C / G, inner / G]
        return tokens @ weight

    def _offsets(self, q: Tensor, grid: Grid, coarse: "CoarseGrid") -> Tensor:
        """Offsets dp [B, G, J, 2] of the reference points, in coarse cells, from queries [B, G, N, I D]."""
        offset = self.to_offsets(grid.cell_means(q), coarse.window)
        # Positions keep float32 under autocast: rounded to bfloat16 they would jump by a quarter of a cell.
        wide: Tensor = widened(offset)
        return wide.tanh() * self.offset_scale

    def _normalize(self, position: Tensor, size: Tensor) -> Tensor:
        """Positions in cells of a grid -> [-1, 1] over its rectangle."""
        if self.positions == "released":
            return 2 * position / (size - 1).clamp(min=1) - 1
        return (2 * position + 1) / size - 1

    def _place(self, position: Tensor, coarse: "CoarseGrid", context: Grid) -> tuple[Tensor, Tensor]:
        """Positions in coarse cells -> normalized, and in cells of the context grid."""
        size = context.sizes[:, None, None]
        normalized = self._normalize(position, coarse.size[:, None, None])
        cells = ((normalized + 1) * size - 1) / 2
        if self.positions == "released":
            return normalized, cells
        cells = torch.minimum(cells.clamp(min=0), size - 1)
        return self._normalize(cells, size), cells

    def _sample(self, context: Tensor, grid: Grid, positions: Tensor, coarse: "CoarseGrid") -> tuple[Tensor, Tensor]:
        """Context at the sampling positions [B, G, J, C / G], and log of the tissue share there [B, G, J]."""
        apart = _apart(context.to(positions.dtype), self.groups)
        grouped = grid.cell_means(apart).flatten(0, 1)  # [B G, H W, C / G]
        if self.positions == "released":
            corners = bilinear_corners(positions.flatten(0, 1), grid.width, grid.height)
            logit = positions.new_zeros(positions.shape[:3]).masked_fill(~coarse.mask[:, None], -torch.inf)
        else:
            corners, share = tissue_corners(grid, positions)
            logit = self._key_logit(torch.unflatten(share, 0, (-1, self.groups)), grid, coarse)
        sampled = bilinear_sample(grouped, corners)
        return torch.unflatten(sampled, 0, (-1, self.groups)), logit

    def _key_logit(self, share: Tensor, grid: Grid, coarse: "CoarseGrid") -> Tensor:
        """Log of the tissue share of every key; keys in holes count only where a group has no other."""
        touches = (share > 0) & coarse.mask[:, None]
        stranded = coarse.mask[:, None] & ~touches.any(-1, keepdim=True) & grid.mask.any(1)[:, None, None]
        return torch.where(touches, torch.where(touches, share, 1).log(), torch.where(stranded, 0.0, -torch.inf))

    def extra_repr(self) -> str:
        """Options as given."""
        return (
            f"{self.dim}, heads={self.heads}, dim_head={self.dim_head}, groups={self.groups}, "
            f"downsample={self.downsample}, kernel_size={self.kernel_size}, offset_scale={self.offset_scale}, "
            f"dropout={self.dropout}, positions={self.positions!r}, "
            f"bias={'table' if self.tabulate else 'exact'!r}, keep_weights={self.keep_weights}, "
            f"backend={self.backend!r}"
        )


class OffsetNetwork(nn.Module):
    """Two numbers per window of queries: depthwise convolution -> GELU -> linear without bias.

    Args:
        channels: channels of an offset group; the groups share the weights.
        kernel_size: side of the window in cells.

    Shape:
        cells [B, G, M, channels], windows of flat indices [B, J, kernel_size, kernel_size] -> [B, G, J, 2].
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, groups=channels)
        self.pointwise = nn.Linear(channels, 2, bias=False)

    def forward(self, cells: Tensor, window: Tensor) -> Tensor:
        """Offsets before the tanh."""
        hidden = depthwise_windows(cells, window, self.depthwise.weight.squeeze(1).movedim(0, 2))
        if self.depthwise.bias is not None:
            hidden = hidden + self.depthwise.bias
        offset: Tensor = self.pointwise(torch.nn.functional.gelu(hidden))
        return offset


def _apart(tokens: Tensor, groups: int) -> Tensor:
    """Channels of tokens by group [B, N, G D] -> [B, G, N, D]."""
    # Not by einops here: torch.compile traces how a pattern is read, which took half of a layer's tracing.
    return torch.unflatten(tokens, 2, (groups, -1)).transpose(1, 2)


def _together(tokens: Tensor) -> Tensor:
    """The opposite of _apart [B, G, N, D] -> [B, N, G D]."""
    return tokens.transpose(1, 2).flatten(2)


class CoarseGrid(NamedTuple):
    """The reference points over a grid, row by row on the canvas of the batch.

    Attributes:
        position: column and row on the bag's own coarse grid [B, J, 2].
        window: flat indices of the canvas cells that the offset network reads [B, J, K, K]; the index behind
            the last cell stands for "outside".
        mask: True where the bag has that reference point [B, J].
        size: (columns, rows) of the bag's coarse grid [B, 2].
    """

    position: Tensor
    window: Tensor
    mask: Tensor
    size: Tensor

    @classmethod
    def over(cls, grid: Grid, downsample: int, kernel_size: int, *, centered: bool) -> "CoarseGrid":
        """One reference point per ``downsample`` cells; per cell along axes too short for the kernel.

        With ``centered``, the points and their windows are spread evenly over a rectangle whose sides are no
        multiples of ``downsample``; without, they are a convolution's, which leaves out the last cells.
        """
        # A convolution pads, so that a side of ``downsample`` is enough for one window.
        least = kernel_size if centered else downsample
        stride = torch.where(grid.sizes >= least, downsample, 1)
        size = torch.div(grid.sizes, stride, rounding_mode="floor")
        sides = zip(*grid.shapes, strict=True)
        # In numbers, because a choice would be a graph of its own for each side of every bag.
        columns, rows = (
            max(side + min(side // least, 1) * (side // downsample - side) for side in axis) for axis in sides
        )
        index = torch.arange(columns * rows, device=size.device)
        position = torch.stack([index % columns, index // columns], dim=-1)[None].expand(len(size), -1, -1)
        mask = (position < size[:, None]).all(-1)
        # A window is centered on the cells that its point stands for.
        pitch = grid.sizes[:, None] / size[:, None] if centered else stride[:, None]
        center = (position + 0.5) * pitch - 0.5
        start = (center - (kernel_size - 1) / 2 + 0.5).floor().long()  # [B, J, 2]
        span = torch.arange(kernel_size, device=size.device)
        x, y = start[..., 0, None] + span, start[..., 1, None] + span  # [B, J, K]
        inside_x, inside_y = ((c >= 0) & (c < grid.sizes[:, i, None, None]) for i, c in enumerate((x, y)))
        cell = y[..., :, None] * grid.width + x[..., None, :]
        inside = inside_y[..., :, None] & inside_x[..., None, :]
        window = torch.where(inside, cell, grid.width * grid.height)
        return cls(position, window, mask, size)
