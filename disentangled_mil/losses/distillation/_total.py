"""The whole distillation loss: predictions, representations and shares, weighted."""

from typing import NamedTuple

from torch import Tensor, nn

from ..._checks import check_choice, check_floating, check_interval, check_mask, check_shape, check_type
from .._reduction import without_absent
from ._prediction import LINKS, check_temperature, prediction_distillation
from ._representation import MATCHINGS, permutation_of, squared_error
from ._shares import share_distillation
from ._targets import DistillationTargets


class DistillationLoss(NamedTuple):
    """The result of :class:`SubspaceDistillation`.

    Attributes:
        total: the weighted sum, a scalar.
        prediction: divergence of the predictions before weighting, a scalar.
        representation: mean squared error of the representations before weighting, a scalar; 0 for targets without
            subspace vectors.
        share: mean squared error of the shares before weighting, a scalar; 0 if the shares have no weight.
        permutation: the prototype of the student that was compared with each subspace [B, S], int64. It has no meaning
            for samples without a teacher, and is None for targets without subspace vectors.
    """

    total: Tensor
    prediction: Tensor
    representation: Tensor
    share: Tensor
    permutation: Tensor | None


class SubspaceDistillation(nn.Module):
    """Distill predictions and subspaces of a teacher into a student that sees no genes.

    ``total = prediction_weight * KL + representation_weight * MSE + share_weight * share``, with
    :func:`prediction_distillation`, :func:`representation_distillation` and :func:`share_distillation`.

    Args:
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        temperature: number by which the logits of both sides are divided.
        prediction_weight: weight of the divergence of the predictions.
        representation_weight: weight of the error between prototypes and subspaces, if the targets have vectors.
        share_weight: weight of the error between shares of the logits. Above 0, targets and student must have shares.
        matching: choice of the prototype of a subspace. ``"slot"`` takes prototype s for subspace s. This needs a
            stable order such as that of :class:`~disentangled_mil.ITA`. ``"hungarian"`` takes the order that fits the
            subspaces best, bag by bag.

    Shape:
        ``student_logits`` [B, K]; ``student_prototypes`` [B, P, C] with P >= S, and P = S for ``"slot"``;
        ``student_shares`` [B, S, K]; targets of logits [B, K], ``subspaces`` [B, S, C] and ``shares`` [B, S, K].

    Returns:
        A :class:`DistillationLoss`. Samples without a teacher take no part. A batch of such samples gives 0 with a
        gradient of 0.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: an option is out of range or a shape differs.

    Source:
        Equations 13, 14 and 18 of the paper.

    Differs from the source:
        Both sides are softened, and the divergence is multiplied by the squared temperature; the paper softens the
        teacher. Targets of several teachers have shares of the logits in place of vectors. Prototypes without a fixed
        order can be matched. Hazards have a divergence of their own. The paper adds the terms without weights; 0.01
        each is the configuration of its published results.

    Example:
        >>> import torch
        >>> from disentangled_mil import DistillationTargets, SubspaceDistillation
        >>> distill = SubspaceDistillation("softmax", temperature=2.0, matching="hungarian")
        >>> features = {"tumor": torch.ones(3, 8), "tme": torch.zeros(3, 8)}
        >>> targets = DistillationTargets.from_teacher(torch.zeros(3, 4), features)
        >>> prototypes = torch.stack([features["tme"], features["tumor"]], dim=1)
        >>> loss = distill(torch.zeros(3, 4), prototypes, targets)
        >>> loss.total, loss.permutation[0]
        (tensor(0.), tensor([1, 0]))
    """

    def __init__(
        self,
        link: str = "softmax",
        *,
        temperature: float = 2.0,
        prediction_weight: float = 0.01,
        representation_weight: float = 0.01,
        share_weight: float = 0.0,
        matching: str = "slot",
    ) -> None:
        super().__init__()
        check_choice("link", link, LINKS)
        check_temperature(temperature)
        check_interval("prediction_weight", prediction_weight, 0.0, float("inf"))
        check_interval("representation_weight", representation_weight, 0.0, float("inf"))
        check_interval("share_weight", share_weight, 0.0, float("inf"))
        check_choice("matching", matching, MATCHINGS)
        self.link = link
        self.temperature = temperature
        self.prediction_weight = prediction_weight
        self.representation_weight = representation_weight
        self.share_weight = share_weight
        self.matching = matching

    def forward(
        self,
        student_logits: Tensor,
        student_prototypes: Tensor,
        targets: DistillationTargets,
        student_shares: Tensor | None = None,
    ) -> DistillationLoss:
        """Compute the weighted sum and its parts."""
        check_type("targets", targets, DistillationTargets, "DistillationTargets")
        present = targets.present
        sizes = check_shape("student_logits", student_logits, "B K")
        check_mask("targets.present", present, "B", sizes)
        prediction = prediction_distillation(
            student_logits, targets.logits, temperature=self.temperature, link=self.link, weight=present
        )
        representation, permutation = self._representation(student_prototypes, targets, sizes["B"])
        share = self._share(student_shares, targets)
        representation = prediction.new_zeros(()) if representation is None else representation
        share = prediction.new_zeros(()) if share is None else share
        total = (
            self.prediction_weight * prediction
            + self.representation_weight * representation
            + self.share_weight * share
        )
        return DistillationLoss(total, prediction, representation, share, permutation)

    def _representation(
        self, prototypes: Tensor, targets: DistillationTargets, batch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The error between prototypes and subspaces, and the prototype of each subspace."""
        sizes = check_shape("student_prototypes", prototypes, "B P C", {"B": batch})
        check_floating("student_prototypes", prototypes)
        if targets.subspaces is None:
            return None, None
        sizes = {**sizes, "S": sizes["P"]} if self.matching == "slot" else sizes
        check_shape("targets.subspaces", targets.subspaces, "B S C", sizes)
        subspaces = without_absent(targets.subspaces.detach(), targets.present)
        permutation = permutation_of(prototypes, subspaces, self.matching)
        return squared_error(prototypes, subspaces, permutation, targets.present), permutation

    def _share(self, shares: Tensor | None, targets: DistillationTargets) -> Tensor | None:
        """The error between the shares of the logits."""
        if not self.share_weight:
            return None
        if shares is None or targets.shares is None:
            name = "student_shares" if shares is None else "targets.shares"
            raise ValueError(f"{name} must be given for share_weight = {self.share_weight}, got None")
        return share_distillation(shares, targets.shares, link=self.link, weight=targets.present)

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return (
            f"link={self.link!r}, temperature={self.temperature}, "
            f"prediction_weight={self.prediction_weight}, "
            f"representation_weight={self.representation_weight}, share_weight={self.share_weight}, "
            f"matching={self.matching!r}"
        )
