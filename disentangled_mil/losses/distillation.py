"""What a student learns from a teacher: its softened predictions and its subspace vectors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .._checks import (
    check_choice,
    check_floating,
    check_interval,
    check_mask,
    check_names,
    check_shape,
    check_subspaces,
)
from .._precision import wide_dtype, widened
from ._reduction import check_batch, weighted_mean, without_absent


class DistillationTargets(NamedTuple):
    """A frozen teacher's outputs, computed once per training set and reused in every epoch.

    Attributes:
        logits: the teacher's logits [B, K], float32.
        subspaces: its subspace vectors [B, S, C], float32, in the order of the subspaces.
        present: False for samples without a teacher (patients without transcriptome) [B]; their rows are
            zeros and take no part in any loss.
    """

    logits: Tensor
    subspaces: Tensor
    present: Tensor

    @classmethod
    def from_teacher(
        cls,
        logits: Tensor,
        features: Mapping[str, Tensor],
        *,
        present: Tensor | None = None,
        subspaces: Sequence[str] | None = None,
    ) -> "DistillationTargets":
        """Detach a teacher's outputs (in eval mode) and stack its subspaces.

        Args:
            logits: the teacher's logits.
            features: the teacher's vector per subspace.
            present: True where the sample has a teacher, all by default; other rows may hold anything.
            subspaces: names in the order in which the student has its prototypes; by default the order of
                ``features``, which then matters.

        Shape:
            ``logits`` [B, K]; every vector of ``features`` [B, C]; ``present`` [B].

        Raises:
            TypeError: an argument is not a floating-point tensor, or ``present`` not a bool one.
            ValueError: a shape differs, there is no subspace, or ``features`` has not those of ``subspaces``.

        Example:
            >>> import torch
            >>> from disentangled_mil import DistillationTargets
            >>> features = {"tumor": torch.ones(3, 8), "tme": torch.zeros(3, 8)}
            >>> targets = DistillationTargets.from_teacher(torch.zeros(3, 4), features)
            >>> targets.select(torch.tensor([2, 0])).subspaces.shape
            torch.Size([2, 2, 8])
        """
        sizes = check_shape("logits", logits, "B K")
        check_floating("logits", logits)
        if not features:
            raise ValueError("features must have at least one subspace, got none")
        subspaces = tuple(features) if subspaces is None else check_subspaces(subspaces)
        check_names("features", features, subspaces)
        for subspace, vectors in features.items():
            sizes |= check_shape(f"features[{subspace!r}]", vectors, "B C", sizes)
            check_floating(f"features[{subspace!r}]", vectors)
        if present is None:
            present = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        check_mask("present", present, "B", sizes)
        stacked = torch.stack([features[subspace] for subspace in subspaces], dim=1)  # [B, S, C]
        return cls(
            without_absent(logits.detach().float(), present),
            without_absent(stacked.detach().float(), present),
            present,
        )

    def select(self, index: Tensor) -> "DistillationTargets":
        """The targets of some samples, by their indices [B] or a bool mask."""
        return DistillationTargets(*(column[index] for column in self))

    def to(self, device: torch.device | str) -> "DistillationTargets":
        """The targets on another device."""
        return DistillationTargets(*(column.to(device) for column in self))


# A teacher's targets are saved once and loaded by every training of a student.
torch.serialization.add_safe_globals([DistillationTargets])


class DistillationLoss(NamedTuple):
    """Result of `SubspaceDistillation`.

    Attributes:
        total: the weighted sum, a scalar.
        prediction: divergence of the predictions before weighting, a scalar.
        representation: mean squared error of the representations before weighting, a scalar.
        permutation: which prototype of the student was compared with each subspace [B, S], int64; without
            meaning for samples without a teacher.
    """

    total: Tensor
    prediction: Tensor
    representation: Tensor
    permutation: Tensor


class SubspaceDistillation(nn.Module):
    """Distil a teacher's predictions and subspaces into a student that sees no genes.

    ``total = prediction_weight * KL + representation_weight * MSE``.

    Args:
        kind: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``.
        temperature: by which both sides' logits are divided.
        prediction_weight: weight of the divergence of the predictions.
        representation_weight: weight of the error between prototypes and subspaces.
        matching: ``"slot"``: prototype s is subspace s, for prototypes in a stable order such as
            :class:`~disentangled_mil.ITA`'s; ``"hungarian"``: every bag's prototypes in the order that fits its
            subspaces best, for prototypes in no order.

    Shape:
        ``student_logits`` [B, K]; ``student_prototypes`` [B, P, C] with P >= S (P = S for ``"slot"``);
        ``targets`` of logits [B, K] and subspaces [B, S, C].

    Returns:
        A `DistillationLoss`. Samples without a teacher take no part; a batch of them gives 0 with a gradient
        of 0.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: an option is out of range or a shape differs.

    Source:
        Eqs. 13, 14 and 18 of the paper.

    Differs from the source:
        Both sides are softened and the divergence is times temperature squared (the paper softens the
        teacher). Prototypes that come in no order can be matched to the subspaces. Hazards get a
        divergence of their own. The paper adds the terms unweighted; 0.01 each is the configuration of its
        published results.

    Example:
        >>> import torch
        >>> from disentangled_mil import DistillationTargets, SubspaceDistillation
        >>> distil = SubspaceDistillation("softmax", temperature=2.0, matching="hungarian")
        >>> features = {"tumor": torch.ones(3, 8), "tme": torch.zeros(3, 8)}
        >>> targets = DistillationTargets.from_teacher(torch.zeros(3, 4), features)
        >>> prototypes = torch.stack([features["tme"], features["tumor"]], dim=1)
        >>> loss = distil(torch.zeros(3, 4), prototypes, targets)
        >>> loss.total, loss.permutation[0]
        (tensor(0.), tensor([1, 0]))
    """

    def __init__(
        self,
        kind: str = "softmax",
        *,
        temperature: float = 2.0,
        prediction_weight: float = 0.01,
        representation_weight: float = 0.01,
        matching: str = "slot",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("softmax", "hazards", "identity"))
        _check_temperature(temperature)
        check_interval("prediction_weight", prediction_weight, 0.0, float("inf"))
        check_interval("representation_weight", representation_weight, 0.0, float("inf"))
        check_choice("matching", matching, ("slot", "hungarian"))
        self.kind = kind
        self.temperature = temperature
        self.prediction_weight = prediction_weight
        self.representation_weight = representation_weight
        self.matching = matching

    def forward(
        self, student_logits: Tensor, student_prototypes: Tensor, targets: DistillationTargets
    ) -> DistillationLoss:
        present = targets.present
        sizes = check_shape("student_logits", student_logits, "B K")
        check_mask("targets.present", present, "B", sizes)
        sizes = check_shape("student_prototypes", student_prototypes, "B P C", {"B": sizes["B"]})
        sizes = {**sizes, "S": sizes["P"]} if self.matching == "slot" else sizes
        check_shape("targets.subspaces", targets.subspaces, "B S C", sizes)
        prediction = prediction_distillation(
            student_logits, targets.logits, temperature=self.temperature, kind=self.kind, weight=present
        )
        subspaces = without_absent(targets.subspaces, present)
        permutation = _permutation(student_prototypes, subspaces, self.matching)
        matched = _take(student_prototypes, permutation)
        representation = representation_distillation(matched, subspaces, weight=present)
        total = self.prediction_weight * prediction + self.representation_weight * representation
        return DistillationLoss(total, prediction, representation, permutation)

    def extra_repr(self) -> str:
        return (
            f"kind={self.kind!r}, temperature={self.temperature}, "
            f"prediction_weight={self.prediction_weight}, "
            f"representation_weight={self.representation_weight}, matching={self.matching!r}"
        )


def prediction_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    kind: str = "softmax",
    weight: Tensor | None = None,
) -> Tensor:
    """Divergence of the student's softened prediction from the teacher's, times the temperature squared.

    ``temperature^2 * mean_i KL(p_i || q_i)``, p the teacher's and q the student's prediction from logits
    divided by the temperature: one distribution over the classes, or one Bernoulli per survival interval,
    summed. The factor keeps the size of the gradient independent of the temperature.

    Args:
        student_logits: the student's logits.
        teacher_logits: the teacher's; no gradient flows into them.
        temperature: positive and finite.
        kind: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``:
            means of normal distributions of variance 1, whose divergence is half the squared difference.
        weight: weight of each sample in the mean, none negative; rows of weight 0 may hold anything in the
            teacher.

    Shape:
        ``student_logits``, ``teacher_logits`` [B, K]; ``weight`` [B].

    Returns:
        A scalar in at least float32, never negative, 0 iff both predict the same; 0 too if all weights are.

    Raises:
        TypeError: logits are not floating-point tensors.
        ValueError: a shape differs, an option is out of range, or the batch is empty.

    Source:
        Eq. 13 of the paper; Hinton, Vinyals and Dean, arXiv 1503.02531.

    Differs from the source:
        The paper softens only the teacher and has no factor. Hazards are no distribution over intervals, so a
        softmax over them means nothing: each interval has a divergence of its own.

    Example:
        >>> import torch
        >>> from disentangled_mil import prediction_distillation
        >>> logits = torch.tensor([[0.0, 2.0]])
        >>> prediction_distillation(logits, torch.zeros(1, 2), temperature=1.0)
        tensor(0.4338)
    """
    check_choice("kind", kind, ("softmax", "hazards", "identity"))
    _check_temperature(temperature)
    sizes = check_shape("student_logits", student_logits, "B K")
    check_shape("teacher_logits", teacher_logits, "B K", sizes)
    check_floating("student_logits", student_logits)
    check_floating("teacher_logits", teacher_logits)
    check_batch("student_logits", student_logits)
    teacher = without_absent(teacher_logits.detach(), weight)
    if kind == "identity":  # The temperature cancels.
        return weighted_mean((widened(student_logits) - widened(teacher)).square().sum(1) / 2, weight)
    p = _log_outcomes(teacher, temperature, kind)  # [B, 1, K] or [B, K, 2]
    q = _log_outcomes(student_logits, temperature, kind)
    divergence = _divergence(p, q).sum((1, 2))  # [B]
    return weighted_mean(divergence, weight) * temperature**2


def representation_distillation(
    student: Tensor, teacher: Tensor, *, matching: str = "slot", weight: Tensor | None = None
) -> Tensor:
    """Mean squared error between a student's prototypes and a teacher's subspaces.

    ``mean_i mean_{s, c} (student[i, perm_i(s), c] - teacher[i, s, c])^2``.

    Args:
        student: the student's prototypes.
        teacher: the teacher's subspace vectors; no gradient flows into them.
        matching: ``"slot"``: prototype s is subspace s; ``"hungarian"``: `match_prototypes` decides.
        weight: weight of each sample in the mean, none negative; rows of weight 0 may hold anything in the
            teacher.

    Shape:
        ``student`` [B, S, C], for ``"hungarian"`` [B, K, C] with K >= S; ``teacher`` [B, S, C]; ``weight``
        [B].

    Returns:
        A scalar in at least float32; 0 if all weights are.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape differs, ``matching`` is unknown, or the batch is empty.

    Source:
        Eq. 14 of the paper.

    Differs from the source:
        The paper compares prototypes in the order in which clustering found them, which is arbitrary.

    Example:
        >>> import torch
        >>> from disentangled_mil import representation_distillation
        >>> student = torch.tensor([[[0.0], [1.0]]])
        >>> representation_distillation(student, student.flip(1))
        tensor(1.)
        >>> representation_distillation(student, student.flip(1), matching="hungarian")
        tensor(0.)
    """
    check_choice("matching", matching, ("slot", "hungarian"))
    sizes = check_shape("student", student, "B K C")
    check_shape("teacher", teacher, "B S C", {**sizes, "S": sizes["K"]} if matching == "slot" else sizes)
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_batch("student", student)
    teacher = without_absent(teacher.detach(), weight)
    matched = _take(student, _permutation(student, teacher, matching))
    dtype = wide_dtype(student, teacher)
    error = (matched.to(dtype) - teacher.to(dtype)).square().mean((1, 2))  # [B]
    return weighted_mean(error, weight)


def match_prototypes(prototypes: Tensor, subspaces: Tensor) -> Tensor:
    """Find for every bag the one-to-one choice of prototypes that is nearest to its subspaces.

    ``argmin_perm sum_s ||prototypes[perm(s)] - subspaces[s]||^2``. Runs on the CPU and waits for the device.

    Args:
        prototypes: prototypes of every bag.
        subspaces: subspace vectors of every bag, or anchors of the subspaces.

    Shape:
        ``prototypes`` [B, K, C]; ``subspaces`` [B, S, C] with S <= K.

    Returns:
        The index of each subspace's prototype [B, S], int64. No gradient. Where a value of a bag is not finite, as
        mixed precision makes them in a step it then skips, its prototypes stay in their order.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape differs, or there are fewer prototypes than subspaces.

    Source:
        Hungarian matching (`scipy.optimize.linear_sum_assignment`); the paper leaves the order open.

    Example:
        >>> import torch
        >>> from disentangled_mil import match_prototypes
        >>> match_prototypes(torch.tensor([[[0.0], [5.0], [1.0]]]), torch.tensor([[[1.1], [0.0]]]))
        tensor([[2, 0]])
    """
    sizes = check_shape("prototypes", prototypes, "B K C")
    sizes = check_shape("subspaces", subspaces, "B S C", sizes) | sizes
    check_floating("prototypes", prototypes)
    check_floating("subspaces", subspaces)
    check_batch("prototypes", prototypes)
    if sizes["K"] < sizes["S"]:
        raise ValueError(f"prototypes must be at least as many as the {sizes['S']} subspaces, got {sizes['K']}")
    a, b = prototypes.detach().cpu().double(), subspaces.detach().cpu().double()
    cost = (b[:, :, None] - a[:, None]).square().mean(-1)  # [B, S, K]
    cost = cost.where(cost.isfinite().all(2).all(1)[:, None, None], 0)
    columns = [torch.from_numpy(linear_sum_assignment(bag.numpy())[1]) for bag in cost]
    return torch.stack(columns).to(prototypes.device, torch.int64)


def _permutation(student: Tensor, teacher: Tensor, matching: str) -> Tensor:
    """The prototype of each subspace [B, S]."""
    if matching == "hungarian":
        return match_prototypes(student, teacher)
    return torch.arange(teacher.shape[1], device=student.device).expand(teacher.shape[:2])


def _take(prototypes: Tensor, permutation: Tensor) -> Tensor:
    """The chosen prototypes [B, K, C], [B, S] -> [B, S, C]."""
    return prototypes.gather(1, permutation[..., None].expand(-1, -1, prototypes.shape[2]))


def _log_outcomes(logits: Tensor, temperature: float, kind: str) -> Tensor:
    """Softened log probabilities, normalized over the last dimension: [B, 1, K], for hazards [B, K, 2]."""
    softened = widened(logits) / temperature
    if kind == "softmax":
        return F.log_softmax(softened, dim=-1)[:, None]
    return torch.stack([F.logsigmoid(softened), F.logsigmoid(-softened)], dim=-1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Terms of KL(p || q) from log probabilities, none of which is negative: p log(p / q) + q - p.

    What is added sums to zero. Without it, terms of either sign cancel, and the sum for two close predictions is
    rounding of either sign.
    """
    d = p - q
    near = d.abs() < 1
    # So that the branch not taken stays finite in the gradient, and what p excludes counts nothing.
    small, large = torch.where(near, d, 0), torch.where(near | (p == -torch.inf), 0, d)
    return torch.where(near, p.exp() * (small.neg().expm1() + small), p.exp() * large + q.exp() - p.exp())


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
