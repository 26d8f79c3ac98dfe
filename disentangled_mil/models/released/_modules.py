"""The released architecture, under our names."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..._checks import check_names, check_subspaces
from ...bags import Bag, Grid
from ...nn.deformable import DeformableCrossAttention
from ...nn.dmsf import DeformableOptions
from ...nn.gene_encoder import SNNEncoder
from ...nn.head import SubspaceHead
from ...nn.ita import ITA
from ...nn.patch_encoder import PatchEncoder
from ..student import StudentBranch, StudentOutput
from ..teacher import TeacherBranchOutput, TeacherOutput
from ._positions import ReleasedPositions

if TYPE_CHECKING:
    from typing_extensions import Unpack

SUBSPACES = ("tumor", "tme")
# The dropout is not stored, and it has no effect on predictions.
_GENE_DROPOUT = 0.25
_RELEASED_EPS = 1e-6


class ReleasedTeacher(nn.Module):
    """The released teacher; see :func:`released_teacher`.

    Args:
        features: width of the stored patch features.
        genes: number of genes of the two subspaces, "tumor" and "tme".
        outputs: number of logits K.
        dim: token width C.
        magnifications: names of the magnifications, from coarse to fine.
        hidden: widths of the hidden layers of the gene encoders.
        **options: heads, dim_head, groups, downsample, kernel_size, offset_scale (``downsample`` by default), dropout
            and backend of :class:`~disentangled_mil.DeformableCrossAttention`; its other options are fixed.

    Shape:
        ``bags`` {magnification: Bag of B}, ``genes`` {subspace: [B, G]}.

    Raises:
        ValueError: names or shapes disagree, an option is out of range or fixed, or a bag does not fill a square row by
            row.

    Source:
        The released implementation, as facts in its golden numbers.

    Differs from the source:
        Predictions are the same.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import Grid
        >>> from disentangled_mil.models.released import ReleasedTeacher
        >>> teacher = ReleasedTeacher(64, {"tumor": 5, "tme": 7}, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 64, 64), Grid.square([64, 64]))
        >>> out = teacher({"10x": bag, "20x": bag}, {"tumor": torch.randn(2, 5), "tme": torch.randn(2, 7)})
        >>> out.logits.shape, out.branches["10x"].features["tme"].shape
        (torch.Size([2, 4]), torch.Size([2, 32]))
    """

    def __init__(
        self,
        features: int,
        genes: Mapping[str, int],
        outputs: int,
        *,
        dim: int = 128,
        magnifications: Sequence[str] = ("10x", "20x"),
        hidden: Sequence[int] = (64, 48, 32),
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        check_names("genes", genes, SUBSPACES)
        self.magnifications = check_subspaces(magnifications, "magnifications")
        self.genes = SNNEncoder(
            {name: genes[name] for name in SUBSPACES},
            dim,
            hidden=hidden,
            dropout=_GENE_DROPOUT,
            activation="elu",
        )
        self.branches = nn.ModuleDict(
            {name: ReleasedTeacherBranch(features, outputs, dim, **options) for name in self.magnifications}
        )

    def forward(self, bags: Mapping[str, Bag], genes: Mapping[str, Tensor]) -> TeacherOutput:
        """Predict from bags at every magnification and genes."""
        _check_squares(bags, self.magnifications)
        tokens = self.genes(genes)
        branches = {name: self.branches[name](bags[name], tokens) for name in self.magnifications}
        logits, gate = _gate([branch.logits for branch in branches.values()])
        return TeacherOutput(logits, branches, gate, logits)

    def subspace_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The classifier blocks of each subspace over all magnifications, for CGC."""
        return {
            subspace: [self.get_parameter(f"branches.{m}.head.blocks.{subspace}") for m in self.magnifications]
            for subspace in SUBSPACES
        }


class ReleasedTeacherBranch(nn.Module):
    """One magnification of the released teacher.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        **options: options of :class:`~disentangled_mil.DeformableCrossAttention`.
    """

    def __init__(self, features: int, outputs: int, dim: int, **options: "Unpack[DeformableOptions]") -> None:
        super().__init__()
        self.patches = PatchEncoder(features, dim)
        self.norm_maps = nn.LayerNorm(dim)
        self.attend = nn.ModuleDict({name: _deformable(dim, **options) for name in SUBSPACES})
        self.fuse = nn.Linear(len(SUBSPACES) * dim, dim)
        self.select = nn.ModuleDict({name: ReleasedSelection(dim) for name in SUBSPACES})
        self.norm_features = nn.LayerNorm(dim)
        self.pool = nn.ModuleDict({name: nn.Linear(dim, dim) for name in SUBSPACES})
        self.head = SubspaceHead(dim, outputs, SUBSPACES)

    def forward(self, bag: Bag, genes: Mapping[str, Tensor]) -> TeacherBranchOutput:
        """Predict from a bag and one encoded gene token per subspace [B, 1, C]."""
        patches = self.patches(bag.patches)
        context = self.norm_maps(patches)
        maps, attention = [], {}
        for name in SUBSPACES:
            gene_map = genes[name].expand_as(patches)
            attended = self.attend[name](self.norm_maps(gene_map), context, bag.grid)
            maps.append(gene_map + attended.tokens)
            attention[name] = attended.attention
        fused = self.norm_maps(self.fuse(torch.cat(maps, dim=-1)))
        features = {}
        for name in SUBSPACES:
            selected = self.select[name](fused, self.norm_maps(genes[name]))
            features[name] = torch.tanh(self.pool[name](self.norm_features(selected)))
        head = self.head(features)
        return TeacherBranchOutput(head.logits, head.subspace_logits, features, attention)


class ReleasedSelection(nn.Module):
    """Attention from a map to gene tokens, then one vector; one LayerNorm serves in all three places.

    ::

        x = q + MHA(LN(q), LN(genes));  selected = tanh(Linear(mean over positions of LN(x)))

    Args:
        dim: token width C.
        heads: attention heads; not stored, and without effect for one gene token.

    Shape:
        ``query`` [B, N, C], ``genes`` [B, T, C] -> [B, C].
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.pool = nn.Linear(dim, dim)

    def forward(self, query: Tensor, genes: Tensor) -> Tensor:
        """Select at every position, and pool."""
        key = self.norm(genes)
        selected, _ = self.attention(self.norm(query), key, key, need_weights=False)
        return torch.tanh(self.pool(self.norm(query + selected).mean(1)))


class ReleasedStudent(nn.Module):
    """The released student; see :func:`released_student`.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        magnifications: names of the magnifications, from coarse to fine.
        **options: heads, dim_head, groups, downsample, kernel_size, offset_scale (``downsample`` by default), dropout
            and backend of :class:`~disentangled_mil.DeformableCrossAttention`; its other options are fixed.

    Shape:
        ``bags`` {magnification: Bag of B}.

    Raises:
        ValueError: names or shapes disagree, an option is out of range or fixed, or a bag does not fill a square row by
            row.

    Source:
        The released implementation, as facts in its golden numbers.

    Differs from the source:
        Two prototypes for any number of patches (theirs: a share of the 2,500 patches); deterministic clusters where
        scores tie. As in the source, the first prototype, called "tumor", is the one with the larger peak score.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import Grid
        >>> from disentangled_mil.models.released import ReleasedStudent
        >>> student = ReleasedStudent(64, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 64, 64), Grid.square([64, 64]))
        >>> out = student({"10x": bag, "20x": bag})
        >>> out.logits.shape, out.branches["10x"].prototypes.shape
        (torch.Size([2, 4]), torch.Size([2, 2, 32]))
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        dim: int = 128,
        magnifications: Sequence[str] = ("10x", "20x"),
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        self.branches = nn.ModuleDict(
            {
                name: StudentBranch(
                    PatchEncoder(features, dim),
                    _deformable(dim, **options),
                    ITA(dim, len(SUBSPACES), order="peak", eps=_RELEASED_EPS),
                    SubspaceHead(dim, outputs, SUBSPACES),
                )
                for name in self.magnifications
            }
        )

    def forward(self, bags: Mapping[str, Bag]) -> StudentOutput:
        """Predict from bags at every magnification."""
        _check_squares(bags, self.magnifications)
        branches = {name: self.branches[name](bags[name]) for name in self.magnifications}
        logits, gate = _gate([branch.logits for branch in branches.values()])
        return StudentOutput(logits, branches, gate, logits)


def _deformable(dim: int, **options: "Unpack[DeformableOptions]") -> DeformableCrossAttention:
    """The released layer, whose offsets reach ``downsample`` coarse cells, which is not stored."""
    fixed: DeformableOptions = {"positions": ReleasedPositions(), "bias": "exact", "max_keys": None}
    given: dict[str, object] = {**fixed, **options}
    for name, value in fixed.items():
        if given[name] != value:
            raise ValueError(f"{name} must be {value!r} in a released model, got {given[name]!r}")
    options.setdefault("offset_scale", float(options.get("downsample", 4)))
    return DeformableCrossAttention(dim, **cast(DeformableOptions, {**options, **fixed}))


def _gate(logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Choose the magnification with the largest softmax for each sample, the last one in a tie.

    Softmax and not its logarithm: two saturated predictions tie here.

    Args:
        logits: logits of every magnification [B, K].

    Returns:
        The chosen logits [B, K], and the shares of the magnifications [B, M].
    """
    stacked = torch.stack(list(logits), dim=1)  # [B, M, K]
    confidence = stacked.softmax(-1).amax(-1)  # [B, M]
    chosen = stacked.shape[1] - 1 - confidence.flip(1).argmax(1)
    gate = nn.functional.one_hot(chosen, stacked.shape[1]).to(stacked.dtype)
    return stacked.take_along_dim(chosen[:, None, None], dim=1).squeeze(1), gate


def _check_squares(bags: Mapping[str, Bag], magnifications: Sequence[str]) -> None:
    """Check that every bag fills a square: the released positions are right for no other."""
    check_names("bags", bags, magnifications)
    for name in magnifications:
        grid = bags[name].grid
        if not isinstance(grid, Grid):
            raise ValueError(
                f"bags[{name!r}] must fill squares of one size row by row (Grid.square), as the released models know "
                "no other bags, got bags without coordinates"
            )
        if not grid.full or grid.width != grid.height:
            raise ValueError(
                f"bags[{name!r}] must fill squares of one size row by row, as the released models know no "
                f"other bags, got {grid.mask.shape[1]} tokens on {grid.width} x {grid.height} cells"
            )
