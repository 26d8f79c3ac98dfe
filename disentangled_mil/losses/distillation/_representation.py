"""Distillation of representations: prototypes of the student approach subspace vectors of the teacher."""

import torch
from torch import Tensor

from ..._checks import check_batch, check_choice, check_floating, check_shape
from ..._precision import wide_dtype
from ...ops import match_prototypes
from .._reduction import weighted_mean, without_absent

MATCHINGS = ("slot", "hungarian")


def representation_distillation(
    student: Tensor, teacher: Tensor, *, matching: str = "slot", weight: Tensor | None = None
) -> Tensor:
    r"""Mean squared error between prototypes of a student and subspaces of a teacher.

    .. math:: \operatorname{mean}_i \operatorname{mean}_{s, c}
              (\mathrm{student}_{i, \pi_i(s), c} - \mathrm{teacher}_{i, s, c})^2

    Args:
        student: prototypes of the student.
        teacher: subspace vectors of the teacher. They get no gradient.
        matching: choice of the prototype :math:`\pi_i(s)` of a subspace. ``"slot"`` takes prototype s, and
            ``"hungarian"`` takes the choice of :func:`match_prototypes`.
        weight: weight of each sample in the mean, not negative. Without it all samples count the same. The teacher's
            row of a sample of weight 0 may hold any value.

    Shape:
        ``student`` [B, S, C], for ``"hungarian"`` [B, K, C] with K >= S; ``teacher`` [B, S, C]; ``weight`` [B].

    Returns:
        A scalar in at least float32; 0 if all weights are 0.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape differs, ``matching`` is unknown, or the batch is empty.

    Source:
        Equation 14 of the paper.

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
    check_choice("matching", matching, MATCHINGS)
    sizes = check_shape("student", student, "B K C")
    check_shape("teacher", teacher, "B S C", {**sizes, "S": sizes["K"]} if matching == "slot" else sizes)
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_batch("student", student)
    teacher = without_absent(teacher.detach(), weight)
    return squared_error(student, teacher, permutation_of(student, teacher, matching), weight)


def permutation_of(student: Tensor, teacher: Tensor, matching: str) -> Tensor:
    """The prototype of each subspace [B, S]."""
    if matching == "hungarian":
        return match_prototypes(student, teacher)
    return torch.arange(teacher.shape[1], device=student.device).expand(teacher.shape[:2])


def squared_error(student: Tensor, teacher: Tensor, permutation: Tensor, weight: Tensor | None) -> Tensor:
    """The error between the chosen prototypes and the subspaces, a scalar."""
    matched = student.gather(1, permutation[..., None].expand(-1, -1, student.shape[2]))  # [B, S, C]
    dtype = wide_dtype(student, teacher)
    error = (matched.to(dtype) - teacher.to(dtype)).square().mean((1, 2))  # [B]
    return weighted_mean(error, weight)
