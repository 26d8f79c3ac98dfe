"""DMSF: deformable cross-attention fusion of genes and patches in each subspace."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_count, check_floating, check_names, check_shape, check_subspaces
from ..bags import Grid, TokenSet, grid_for
from .attention import DeformableAttention
from .deformable import DeformableCrossAttention
from .positions import Positions
from .selection import GeneSelection
from .set_attention import SetAttention

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DeformableOptions(TypedDict, total=False):
    """Options of :class:`~disentangled_mil.DeformableCrossAttention`, except ``dim`` and ``dropout``."""

    heads: int
    dim_head: int
    groups: int
    downsample: int
    kernel_size: int | None
    offset_scale: float
    positions: Positions | None
    bias: str
    max_keys: int | None
    keep_weights: bool
    backend: str


class DMSFOutput(NamedTuple):
    """What :class:`DMSF` returns, by subspace.

    Attributes:
        features: subspace vectors X_s [B, C].
        tokens: histology tokens after the deformation layer [B, N, C].
        attention: lazy attention map of the deformation layer.
        selection: attention of every position over the gene tokens [B, N, T].
    """

    features: dict[str, Tensor]
    tokens: dict[str, Tensor]
    attention: dict[str, DeformableAttention | SetAttention]
    selection: dict[str, Tensor]


class DMSF(nn.Module):
    """Disentangled multi-modal subspace fusion: genes look at histology, histology selects genes, per subspace.

    ::

        M_s = G_s + DeformableCrossAttention(LN(G_s), LN(patches))      genes -> histology
        X_s = tanh(Linear(mean(M_s + MHA(LN(M_s), LN(genes_s)))))       histology -> genes

    G_s is the query map: the mean gene token of the subspace on every cell of the grid.

    Args:
        dim: token width C.
        subspaces: names of the subspaces, in order; any number of them.
        query: kind of the query map. ``"gene"`` lays the gene vector alone on every cell (the paper), so that all
            offsets and all attention rows differ by their position only; ``"gene+patch"`` adds the patch of the cell.
        selection_query: map from which genes are selected: its own for each subspace (``"separate"``), or one linear
            fusion of all maps (``"fused"``).
        selection_heads: heads of the selection layer; they divide ``dim``.
        dropout: probability of dropping an attention weight of the deformation layer.
        **options: heads, dim_head, groups, downsample, kernel_size, offset_scale, positions, bias, max_keys,
            keep_weights and backend of :class:`~disentangled_mil.DeformableCrossAttention`.

    Shape:
        ``patches`` [B, N, C], ``genes`` {subspace: [B, T, C]}.

    Raises:
        TypeError: ``dim`` is no integer, or tokens are not floating-point.
        ValueError: ``dim`` is less than 1, names or shapes disagree, or an option is unknown.

    Source:
        Eqs 1-5 of the paper.

    Differs from the source:
        There may be any number of subspaces, and several gene tokens, among which the selection layer can select. The
        query map holds patch content by default. Bags have masks, holes and true coordinates. See also
        :class:`~disentangled_mil.DeformableCrossAttention`.

    Example:
        >>> import torch
        >>> from disentangled_mil import DMSF
        >>> fuse = DMSF(32, ("tumor", "tme"), heads=4, groups=4, dim_head=8, selection_heads=4)
        >>> genes = {"tumor": torch.randn(2, 3, 32), "tme": torch.randn(2, 3, 32)}
        >>> fused = fuse(torch.randn(2, 50, 32), genes)
        >>> fused.features["tumor"].shape, fused.attention["tme"].mass().shape
        (torch.Size([2, 32]), torch.Size([2, 50]))
    """

    def __init__(
        self,
        dim: int,
        subspaces: Sequence[str] = ("tumor", "tme"),
        *,
        query: str = "gene+patch",
        selection_query: str = "separate",
        selection_heads: int = 8,
        dropout: float = 0.1,
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("selection_heads", selection_heads)
        if dim % selection_heads:
            raise ValueError(f"dim must be a multiple of selection_heads = {selection_heads}, got {dim}")
        check_choice("query", query, ("gene", "gene+patch"))
        check_choice("selection_query", selection_query, ("separate", "fused"))
        self.dim, self.subspaces = dim, check_subspaces(subspaces)
        self.query, self.selection_query = query, selection_query
        self.norm_query = nn.ModuleDict({name: nn.LayerNorm(dim) for name in self.subspaces})
        self.norm_patches = nn.LayerNorm(dim)
        deform = {name: DeformableCrossAttention(dim, dropout=dropout, **options) for name in self.subspaces}
        self.deform = nn.ModuleDict(deform)
        self.fuse = nn.Linear(dim * len(self.subspaces), dim) if selection_query == "fused" else None
        self.select = nn.ModuleDict({name: GeneSelection(dim, heads=selection_heads) for name in self.subspaces})

    def forward(
        self,
        patches: Tensor,
        genes: Mapping[str, Tensor],
        grid: Grid | TokenSet | None = None,
        *,
        mask: Tensor | None = None,
    ) -> DMSFOutput:
        """Fuse patches and genes.

        Args:
            patches: patch tokens.
            genes: gene tokens of every subspace.
            grid: grid of the patches, or a set of them; a set without padding by default.
            mask: mask of sets [B, N], instead of a grid (True = real token).

        Returns:
            Subspace vectors, tokens, attention maps and gene selection.
        """
        sizes = check_shape("patches", patches, "B N C", {"C": self.dim})
        check_floating("patches", patches)
        check_names("genes", genes, self.subspaces)
        for name in self.subspaces:
            check_shape(f"genes[{name!r}]", genes[name], "B T C", {"B": sizes["B"], "C": self.dim})
            check_floating(f"genes[{name!r}]", genes[name])
            check_count(f"genes[{name!r}] tokens", genes[name].shape[1])
        grid = grid_for(patches, grid, mask)
        dtype = self.norm_patches.weight.dtype
        patches = torch.where(grid.mask[..., None], patches, 0).to(dtype)
        genes = {name: genes[name].to(dtype) for name in self.subspaces}
        context = self.norm_patches(patches)
        tokens: dict[str, Tensor] = {}
        attention: dict[str, DeformableAttention | SetAttention] = {}
        for name in self.subspaces:
            gene_map = genes[name].mean(1, keepdim=True)
            gene_map = gene_map + patches if self.query == "gene+patch" else gene_map.expand_as(patches)
            deformed = self.deform[name](self.norm_query[name](gene_map), context, grid)
            tokens[name] = torch.where(grid.mask[..., None], gene_map + deformed.tokens, 0)
            attention[name] = deformed.attention
        maps = self._selection_maps(tokens)
        selected = {name: self.select[name](maps[name], genes[name], grid.mask) for name in self.subspaces}
        features = {name: out.feature for name, out in selected.items()}
        return DMSFOutput(features, tokens, attention, {name: out.weights for name, out in selected.items()})

    def _selection_maps(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """The map from which each subspace selects."""
        if self.fuse is None:
            return tokens
        fused = self.fuse(torch.cat([tokens[name] for name in self.subspaces], dim=2))
        return dict.fromkeys(self.subspaces, fused)

    def extra_repr(self) -> str:
        """Options as given."""
        return f"{self.dim}, {self.subspaces}, query={self.query!r}, selection_query={self.selection_query!r}"
