"""Distillation of shares: how much each subspace says for each class.

A head that is additive over subspaces (:class:`~disentangled_mil.SubspaceHead`) splits its logits into one share per
subspace. Shares of all teachers and students lie in the space of the logits, so they can be compared and averaged where
vectors cannot. Two things about shares are arbitrary. A constant per output may move from one subspace to another
without a change of any prediction; :func:`balance_shares` fixes it over a whole training set. For classes, a constant
per sample and subspace changes no probability; :func:`share_distillation` leaves it out.
"""

import torch
from torch import Tensor

from ..._checks import check_batch, check_choice, check_floating, check_shape, check_type
from ..._precision import widened
from .._reduction import weighted_mean, without_absent
from ._prediction import LINKS


def share_distillation(
    student_shares: Tensor, teacher_shares: Tensor, *, link: str = "softmax", weight: Tensor | None = None
) -> Tensor:
    r"""Mean squared error between the shares of a student's subspaces and those of a teacher's.

    .. math:: \operatorname{mean}_i \operatorname{mean}_{s, k}
              (\mathrm{student}_{i, s, k} - \mathrm{teacher}_{i, s, k})^2

    For ``"softmax"``, each share is first centered over the classes, because a constant over all classes changes no
    probability.

    Args:
        student_shares: share of each subspace in the student's logits.
        teacher_shares: share of each subspace in the teacher's logits, best after :func:`balance_shares`. They get no
            gradient.
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        weight: weight of each sample in the mean, not negative. Without it all samples count the same. The teacher's
            row of a sample of weight 0 may hold any value.

    Shape:
        ``student_shares`` and ``teacher_shares`` [B, S, K], ``weight`` [B].

    Returns:
        A scalar in at least float32; 0 if all weights are 0.

    Raises:
        TypeError: shares are not floating-point tensors.
        ValueError: a shape differs, ``link`` is unknown, or the batch is empty.

    Source:
        Own; the paper distills subspaces as vectors (equation 14), which exist in the space of one teacher only.

    Example:
        >>> import torch
        >>> from disentangled_mil import share_distillation
        >>> teacher = torch.tensor([[[1.0, -1.0], [0.0, 0.0]]])
        >>> share_distillation(teacher + 5, teacher), share_distillation(teacher.flip(1), teacher)
        (tensor(0.), tensor(1.))
    """
    check_choice("link", link, LINKS)
    sizes = check_shape("student_shares", student_shares, "B S K")
    check_shape("teacher_shares", teacher_shares, "B S K", sizes)
    check_floating("student_shares", student_shares)
    check_floating("teacher_shares", teacher_shares)
    check_batch("student_shares", student_shares)
    difference = widened(student_shares) - widened(without_absent(teacher_shares.detach(), weight))
    if link == "softmax":
        difference = difference - difference.mean(2, keepdim=True)
    return weighted_mean(difference.square().mean((1, 2)), weight)


def balance_shares(shares: Tensor, rows: Tensor | None = None) -> Tensor:
    r"""Move constants between subspaces until all of them have the same mean over samples.

    .. math:: \mathrm{share}_{i, s} - \operatorname{mean}_i \mathrm{share}_{i, s}
              + \operatorname{mean}_{i, s} \mathrm{share}_{i, s}

    The sum over subspaces, which is the logits, does not change. Balance the shares of each teacher before averaging.

    Args:
        shares: share of each subspace in the logits of one model.
        rows: samples of the mean, as indices or a bool mask; by default all. Other rows get the same constants.

    Shape:
        ``shares`` [B, S, K].

    Returns:
        The balanced shares.

    Raises:
        TypeError: ``shares`` is not a floating-point tensor.
        ValueError: the shape differs, or there is no sample.

    Source:
        Own.

    Example:
        >>> import torch
        >>> from disentangled_mil import balance_shares
        >>> balance_shares(torch.tensor([[[3.0], [0.0]], [[5.0], [0.0]]])).flatten(1)
        tensor([[1., 2.],
                [3., 2.]])
    """
    check_shape("shares", shares, "B S K")
    check_floating("shares", shares)
    if rows is not None:
        check_type("rows", rows, Tensor, "a tensor of indices or a bool mask")
        if rows.dtype not in (torch.bool, torch.int64):
            raise TypeError(f"rows must be an int64 or bool tensor, got {rows.dtype}")
    counted = shares if rows is None else shares[rows]
    check_batch("shares", counted)
    mean = counted.mean(0)  # [S, K]
    return shares - (mean - mean.mean(0))
