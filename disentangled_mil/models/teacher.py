"""Stage I: the teacher, which sees patches and genes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_interval, check_names, check_shape, check_subspaces, check_type
from ..bags import Bag
from ..nn.attention import DeformableAttention
from ..nn.dmsf import DMSF, DeformableOptions
from ..nn.gate import RULES, MagnificationGate
from ..nn.gene_encoder import SNNEncoder
from ..nn.head import SubspaceHead
from ..nn.patch_encoder import PatchEncoder
from ..nn.set_attention import SetAttention
from ._inputs import check_bags
from .linear_model import LinearModel, named_vectors, patch_statistics

if TYPE_CHECKING:
    from typing_extensions import Unpack


class TeacherBranchOutput(NamedTuple):
    """One magnification of the teacher.

    Attributes:
        logits: prediction [B, K].
        subspace_logits: share of each subspace in the logits [B, K].
        features: subspace vectors X_s [B, C].
        attention: lazy attention map of each subspace.
    """

    logits: Tensor
    subspace_logits: dict[str, Tensor]
    features: dict[str, Tensor]
    attention: dict[str, DeformableAttention | SetAttention]


class TeacherOutput(NamedTuple):
    """What :class:`Teacher` returns.

    Attributes:
        logits: prediction [B, K].
        branches: outputs by magnification.
        gate: share of each magnification in the gated prediction [B, M].
        gated: gated prediction of the branches [B, K]; equal to ``logits`` without a linear model.
    """

    logits: Tensor
    branches: dict[str, TeacherBranchOutput]
    gate: Tensor
    gated: Tensor


class TeacherBranch(nn.Module):
    """One magnification of the teacher, from its parts.

    Args:
        patches: layer from stored features and mask to patch tokens.
        fuse: layer from patch tokens and gene tokens to subspace vectors.
        head: layer from subspace vectors to logits.
    """

    def __init__(self, patches: PatchEncoder, fuse: DMSF, head: SubspaceHead) -> None:
        super().__init__()
        self.patches, self.fuse, self.head = patches, fuse, head

    def forward(self, bag: Bag, genes: Mapping[str, Tensor]) -> TeacherBranchOutput:
        """Predict from a bag and encoded genes."""
        patches = self.patches(bag.patches, bag.mask)
        fused = self.fuse(patches, genes, bag.grid)
        head = self.head(fused.features)
        return TeacherBranchOutput(head.logits, head.subspace_logits, fused.features, fused.attention)


class Teacher(nn.Module):
    """Patches and genes -> prediction: gene encoders shared by all magnifications, one branch for each.

    Args:
        features: width of the stored patch features.
        genes: number of genes of every subspace, in the order of the subspaces.
        outputs: number of logits K.
        dim: token width C.
        magnifications: names of the magnifications; any number of them.
        gene_tokens: gene tokens T per subspace.
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        gate: rule of :class:`~disentangled_mil.MagnificationGate`.
        query: query map of :class:`~disentangled_mil.DMSF`.
        selection_query: query of the selection layer.
        selection_heads: heads of the selection layer; they divide ``dim``.
        dropout: dropout probability of patch tokens and attention weights.
        gene_dropout: dropout probability of the gene layers.
        linear: share of a :class:`~disentangled_mil.LinearModel` in the logits, from 0 to 1; the rest are the gated
            logits. The model sees the genes, and mean and standard deviation of the patches. 0 leaves it out.
        **options: options of :class:`~disentangled_mil.DeformableCrossAttention`, such as ``bias`` and ``max_keys``;
            ``keep_weights`` is True by default, for the consistency loss.

    Shape:
        ``bags`` {magnification: Bag of B}, ``genes`` {subspace: [B, G]}.

    Raises:
        ValueError: names or shapes disagree, or an option is out of range.

    Attributes:
        arguments: constructor arguments, from which a checkpoint builds the model again.

    Source:
        The paper's first stage.

    Differs from the source:
        See :class:`~disentangled_mil.DMSF`. The linear model is not in the paper. Released checkpoints are read by
        :mod:`disentangled_mil.models.released`.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, TokenSet, Teacher
        >>> teacher = Teacher(1024, {"tumor": 59, "tme": 361}, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 100, 1024), TokenSet.of([100, 60]))
        >>> out = teacher({"10x": bag, "20x": bag}, {"tumor": torch.randn(2, 59), "tme": torch.randn(2, 361)})
        >>> out.logits.shape, out.branches["20x"].features["tme"].shape
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
        gene_tokens: int = 4,
        link: str = "softmax",
        gate: str = "max_confidence",
        query: str = "gene+patch",
        selection_query: str = "separate",
        selection_heads: int = 8,
        dropout: float = 0.1,
        gene_dropout: float = 0.1,
        linear: float = 0.0,
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        options.setdefault("keep_weights", True)  # The consistency loss needs the weights.
        check_type("genes", genes, Mapping, "a mapping from names of subspaces to numbers of genes")
        self.subspaces = check_subspaces(genes, "genes")
        check_choice("gate", gate, RULES)
        check_interval("gene_dropout", gene_dropout, 0, 1)
        self.arguments: dict[str, Any] = {
            "features": features,
            "genes": dict(genes),
            "outputs": outputs,
            "dim": dim,
            "magnifications": list(self.magnifications),
            "gene_tokens": gene_tokens,
            "link": link,
            "gate": gate,
            "query": query,
            "selection_query": selection_query,
            "selection_heads": selection_heads,
            "dropout": dropout,
            "gene_dropout": gene_dropout,
            "linear": linear,
            **options,
        }
        self.genes = SNNEncoder(genes, dim, gene_tokens=gene_tokens, dropout=gene_dropout)
        self.branches = nn.ModuleDict()
        for name in self.magnifications:
            fuse = DMSF(
                dim,
                self.subspaces,
                query=query,
                selection_query=selection_query,
                selection_heads=selection_heads,
                dropout=dropout,
                **options,
            )
            patches = PatchEncoder(features, dim, dropout=dropout)
            self.branches[name] = TeacherBranch(patches, fuse, SubspaceHead(dim, outputs, self.subspaces))
        self.gate = MagnificationGate(self.magnifications, rule=gate, link=link)
        widths = named_vectors(dict.fromkeys(self.magnifications, (features, features)), genes)
        check_interval("linear", linear, 0, 1)
        self.linear_share = linear
        self.linear = LinearModel(widths, outputs) if linear else None

    def forward(self, bags: Mapping[str, Bag], genes: Mapping[str, Tensor]) -> TeacherOutput:
        """Predict from bags at every magnification and genes.

        Args:
            bags: bags of the same samples, by magnification. A sample that lacks a magnification has an empty bag there
                (:meth:`~disentangled_mil.Bag.empty`), which has no weight in the prediction.
            genes: expression of every subspace.

        Returns:
            Prediction, and the outputs of every magnification.
        """
        samples = check_bags(bags, self.magnifications)
        check_names("genes", genes, self.subspaces)
        for name in self.subspaces:
            check_shape(f"genes[{name!r}]", genes[name], "B G", {"B": samples})
        tokens = self.genes(genes)
        branches = {name: self.branches[name](bags[name], tokens) for name in self.magnifications}
        present = torch.stack([bags[name].mask.any(1) for name in self.magnifications], dim=1)
        gated = self.gate({name: branch.logits for name, branch in branches.items()}, present)
        logits = gated.logits
        if self.linear is not None:
            patches = {name: patch_statistics(bags[name]) for name in self.magnifications}
            logits = torch.lerp(logits, self.linear(named_vectors(patches, genes)).to(logits), self.linear_share)
        return TeacherOutput(logits, branches, gated.weights, gated.logits)

    def subspace_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The classifier blocks of each subspace over all magnifications, for CGC."""
        return {
            subspace: [self.get_parameter(f"branches.{name}.head.blocks.{subspace}") for name in self.magnifications]
            for subspace in self.subspaces
        }
