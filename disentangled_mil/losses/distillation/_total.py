"""The whole distillation loss: predictions and representations, weighted."""

from typing import NamedTuple

from torch import Tensor, nn

from ..._checks import check_choice, check_floating, check_interval, check_mask, check_shape
from .._reduction import without_absent
from ._prediction import LINKS, check_temperature, prediction_distillation
from ._representation import MATCHINGS, permutation_of, squared_error
from ._targets import DistillationTargets


class DistillationLoss(NamedTuple):
    """The result of :class:`SubspaceDistillation`.

    Attributes:
        total: the weighted sum, a scalar.
        prediction: divergence of the predictions before weighting, a scalar.
        representation: mean squared error of the representations before weighting, a scalar.
        permutation: the prototype of the student that was compared with each subspace [B, S], int64. It has no meaning
            for samples without a teacher.
    """

    total: Tensor
    prediction: Tensor
    representation: Tensor
    permutation: Tensor


class SubspaceDistillation(nn.Module):
    """Distill predictions and subspaces of a teacher into a student that sees no genes.

    ``total = prediction_weight * KL + representation_weight * MSE``, with :func:`prediction_distillation` and
    :func:`representation_distillation`.

    Args:
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        temperature: number by which the logits of both sides are divided.
        prediction_weight: weight of the divergence of the predictions.
        representation_weight: weight of the error between prototypes and subspaces.
        matching: choice of the prototype of a subspace. ``"slot"`` takes prototype s for subspace s. This needs a
            stable order such as that of :class:`~disentangled_mil.ITA`. ``"hungarian"`` takes the order that fits the
            subspaces best, bag by bag.

    Shape:
        student_logits [B, K]; student_prototypes [B, P, C] with P >= S, and P = S for ``"slot"``; targets of logits
        [B, K] and subspaces [B, S, C].

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
        teacher. Prototypes without a fixed order can be matched. Hazards have a divergence of their own. The paper adds
        the terms without weights; 0.01 each is the configuration of its published results.

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
        matching: str = "slot",
    ) -> None:
        super().__init__()
        check_choice("link", link, LINKS)
        check_temperature(temperature)
        check_interval("prediction_weight", prediction_weight, 0.0, float("inf"))
        check_interval("representation_weight", representation_weight, 0.0, float("inf"))
        check_choice("matching", matching, MATCHINGS)
        self.link = link
        self.temperature = temperature
        self.prediction_weight = prediction_weight
        self.representation_weight = representation_weight
        self.matching = matching

    def forward(
        self, student_logits: Tensor, student_prototypes: Tensor, targets: DistillationTargets
    ) -> DistillationLoss:
        """Compute the weighted sum and its two parts."""
        present = targets.present
        sizes = check_shape("student_logits", student_logits, "B K")
        check_mask("targets.present", present, "B", sizes)
        sizes = check_shape("student_prototypes", student_prototypes, "B P C", {"B": sizes["B"]})
        check_floating("student_prototypes", student_prototypes)
        sizes = {**sizes, "S": sizes["P"]} if self.matching == "slot" else sizes
        check_shape("targets.subspaces", targets.subspaces, "B S C", sizes)
        prediction = prediction_distillation(
            student_logits, targets.logits, temperature=self.temperature, link=self.link, weight=present
        )
        subspaces = without_absent(targets.subspaces.detach(), present)
        permutation = permutation_of(student_prototypes, subspaces, self.matching)
        representation = squared_error(student_prototypes, subspaces, permutation, present)
        total = self.prediction_weight * prediction + self.representation_weight * representation
        return DistillationLoss(total, prediction, representation, permutation)

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return (
            f"link={self.link!r}, temperature={self.temperature}, "
            f"prediction_weight={self.prediction_weight}, "
            f"representation_weight={self.representation_weight}, matching={self.matching!r}"
        )
