"""Stage II: the student, which sees patches only."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_integers, check_interval, check_shape, check_subspaces
from ..bags import Bag
from ..nn.attention import DeformableAttention
from ..nn.deformable import DeformableCrossAttention
from ..nn.dmsf import DeformableOptions
from ..nn.gate import RULES, MagnificationGate
from ..nn.head import SubspaceHead
from ..nn.ita import ITA
from ..nn.patch_encoder import PatchEncoder
from ..nn.set_attention import SetAttention
from ._inputs import check_bags
from .linear_model import LinearModel, named_vectors, patch_statistics

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StudentBranchOutput(NamedTuple):
    """One magnification of the student.

    Attributes:
        logits: prediction [B, K].
        subspace_logits: share of each prototype in the logits [B, K], under the name of its subspace.
        prototypes: prototypes [B, S, C], in the order of the subspaces.
        centers: token at the center of the cluster of every prototype [B, S]. A bag with fewer than S tokens has -1
            in the slots left over, whose prototype is the mean of all tokens.
        assignment: prototype of every token [B, N]; -1 for padding.
        significance: weight of every token within its prototype [B, N].
        attention: lazy attention map.
    """

    logits: Tensor
    subspace_logits: dict[str, Tensor]
    prototypes: Tensor
    centers: Tensor
    assignment: Tensor
    significance: Tensor
    attention: DeformableAttention | SetAttention


class StudentOutput(NamedTuple):
    """What :class:`Student` returns.

    Attributes:
        logits: prediction [B, K].
        branches: outputs by magnification.
        gate: share of each magnification in the gated prediction [B, M].
        gated: gated prediction of the branches [B, K]; equal to ``logits`` without a linear model.
    """

    logits: Tensor
    branches: dict[str, StudentBranchOutput]
    gate: Tensor
    gated: Tensor


class StudentBranch(nn.Module):
    """One magnification of the student, from its parts.

    Args:
        patches: layer from stored features and mask to patch tokens.
        attend: layer in which patch tokens attend to each other.
        aggregate: layer from patch tokens to one prototype per subspace.
        head: layer from prototypes to logits.
    """

    def __init__(
        self, patches: PatchEncoder, attend: DeformableCrossAttention, aggregate: ITA, head: SubspaceHead
    ) -> None:
        super().__init__()
        self.patches, self.attend, self.aggregate, self.head = patches, attend, aggregate, head
        self.norm = nn.LayerNorm(attend.dim)

    def forward(self, bag: Bag) -> StudentBranchOutput:
        """Predict from a bag."""
        patches = self.patches(bag.patches, bag.mask)
        normed = self.norm(patches)
        attended = self.attend(normed, normed, bag.grid)
        merged = self.aggregate(patches + attended.tokens, bag.mask)
        head = self.head(dict(zip(self.head.subspaces, merged.prototypes.unbind(1), strict=True)))
        return StudentBranchOutput(
            head.logits,
            head.subspace_logits,
            merged.prototypes,
            merged.centers,
            merged.assignment,
            merged.weights,
            attended.attention,
        )


class Student(nn.Module):
    """Patches -> prediction, by one prototype per subspace and magnification.

    Args:
        features: width of the stored patch features.
        outputs: number of logits K.
        dim: token width C.
        magnifications: names of the magnifications; any number of them.
        subspaces: names of the subspaces, in order; each has one prototype.
        neighbors: number of neighbors k in the density estimate of the clustering.
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        gate: rule of :class:`~disentangled_mil.MagnificationGate`.
        dropout: dropout probability of patch tokens and attention weights.
        linear: share of a :class:`~disentangled_mil.LinearModel` in the logits, from 0 to 1; the rest are the gated
            logits. The model sees mean and standard deviation of the patches at every magnification. 0 leaves it out.
        **options: options of :class:`~disentangled_mil.DeformableCrossAttention`, such as ``bias`` and ``max_keys``.

    Shape:
        ``bags`` {magnification: Bag of B}.

    Raises:
        ValueError: names or shapes disagree, or an option is out of range.

    Attributes:
        arguments: constructor arguments, from which a checkpoint builds the model again.

    Source:
        The paper's second stage.

    Differs from the source:
        Prototypes in the order of the subspaces (see :class:`~disentangled_mil.ITA`). The linear model, which is left
        out by default.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, TokenSet, Student
        >>> student = Student(1024, 4, dim=32, heads=4, groups=4, dim_head=8)
        >>> bag = Bag(torch.randn(2, 100, 1024), TokenSet.of([100, 60]))
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
        subspaces: Sequence[str] = ("tumor", "tme"),
        neighbors: int = 5,
        link: str = "softmax",
        gate: str = "max_confidence",
        dropout: float = 0.1,
        linear: float = 0.0,
        **options: "Unpack[DeformableOptions]",
    ) -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        self.subspaces = check_subspaces(subspaces)
        check_choice("gate", gate, RULES)
        self.arguments: dict[str, Any] = {
            "features": features,
            "outputs": outputs,
            "dim": dim,
            "magnifications": list(self.magnifications),
            "subspaces": list(self.subspaces),
            "neighbors": neighbors,
            "link": link,
            "gate": gate,
            "dropout": dropout,
            "linear": linear,
            **options,
        }
        self.branches = nn.ModuleDict(
            {
                name: StudentBranch(
                    PatchEncoder(features, dim, dropout=dropout),
                    DeformableCrossAttention(dim, dropout=dropout, **options),
                    ITA(dim, len(self.subspaces), neighbors=neighbors),
                    SubspaceHead(dim, outputs, self.subspaces),
                )
                for name in self.magnifications
            }
        )
        self.gate = MagnificationGate(self.magnifications, rule=gate, link=link)
        widths = named_vectors(dict.fromkeys(self.magnifications, (features, features)))
        check_interval("linear", linear, 0, 1)
        self.linear_share = linear
        self.linear = LinearModel(widths, outputs) if linear else None

    def forward(self, bags: Mapping[str, Bag]) -> StudentOutput:
        """Predict from bags at every magnification.

        Args:
            bags: bags of the same samples, by magnification. A sample that lacks a magnification has an empty bag there
                (:meth:`~disentangled_mil.Bag.empty`), which has no weight in the prediction.

        Returns:
            Prediction, and the outputs of every magnification.
        """
        check_bags(bags, self.magnifications)
        branches = {name: self.branches[name](bags[name]) for name in self.magnifications}
        present = torch.stack([bags[name].mask.any(1) for name in self.magnifications], dim=1)
        gated = self.gate({name: branch.logits for name, branch in branches.items()}, present)
        logits = gated.logits
        if self.linear is not None:
            patches = {name: patch_statistics(bags[name]) for name in self.magnifications}
            logits = torch.lerp(logits, self.linear(named_vectors(patches)).to(logits), self.linear_share)
        return StudentOutput(logits, branches, gated.weights, gated.logits)

    @torch.no_grad()
    def reorder(self, magnification: str, permutation: Tensor) -> None:
        """Give the prototypes of a magnification another order, and change no prediction.

        The state of an optimizer is not reordered: its moments belong to other subspaces for a few steps.

        Args:
            magnification: name of the magnification.
            permutation: index of the present prototype that each subspace takes over [S], for example from
                :func:`~disentangled_mil.match_prototypes` over a whole training set.

        Raises:
            TypeError: ``permutation`` is no integer tensor.
            ValueError: ``permutation`` is no permutation of the S subspaces, or there is no such magnification.
        """
        check_choice("magnification", magnification, self.magnifications)
        check_shape("permutation", permutation, "S")
        check_integers("permutation", permutation)
        if sorted(permutation.tolist()) != list(range(len(self.subspaces))):
            raise ValueError(f"permutation must order {len(self.subspaces)} subspaces, got {permutation.tolist()}")
        branch = cast(StudentBranch, self.branches[magnification])
        if branch.aggregate.anchors is not None:
            branch.aggregate.anchors.copy_(branch.aggregate.anchors[permutation])
        blocks = [branch.head.blocks[name].clone() for name in self.subspaces]
        for name, source in zip(self.subspaces, permutation.tolist(), strict=True):
            branch.head.blocks[name].copy_(blocks[source])
