"""Distillation of predictions: a divergence of softened outcomes."""

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import check_batch, check_choice, check_floating, check_shape, check_type
from ..._precision import widened
from .._reduction import weighted_mean, without_absent

LINKS = ("softmax", "hazards", "identity")


def prediction_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    link: str = "softmax",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Divergence of a student's softened prediction from the teacher's.

    .. math:: T^2 \operatorname{mean}_i \mathrm{KL}(p_i \,\|\, q_i)

    p is the teacher's and q the student's prediction, from logits divided by the temperature T. For classes, a
    prediction is one distribution. For hazards, it is one Bernoulli distribution per survival interval. For numbers, it
    is one normal distribution of variance 1 per number. The divergences of several distributions are summed. The factor
    keeps the size of the gradient independent of T.

    Args:
        student_logits: logits of the student.
        teacher_logits: logits of the teacher. They get no gradient.
        temperature: temperature T, positive and finite.
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers.
        weight: weight of each sample in the mean, not negative. Without it all samples count the same. The teacher's
            row of a sample of weight 0 may hold any value.

    Shape:
        ``student_logits`` and ``teacher_logits`` [B, K], ``weight`` [B].

    Returns:
        A scalar in at least float32. It is never negative, and 0 only if both predictions are equal or all weights are
        0.

    Raises:
        TypeError: logits are not floating-point tensors.
        ValueError: a shape differs, an option is out of range, or the batch is empty.

    Source:
        Equation 13 of the paper; Hinton, Vinyals and Dean, arXiv 1503.02531.

    Differs from the source:
        The paper softens only the teacher and has no factor. Hazards are no distribution over intervals, so each
        interval has a divergence of its own.

    Example:
        >>> import torch
        >>> from disentangled_mil import prediction_distillation
        >>> logits = torch.tensor([[0.0, 2.0]])
        >>> prediction_distillation(logits, torch.zeros(1, 2), temperature=1.0)
        tensor(0.4338)
    """
    check_choice("link", link, LINKS)
    check_temperature(temperature)
    sizes = check_shape("student_logits", student_logits, "B K")
    check_shape("teacher_logits", teacher_logits, "B K", sizes)
    check_floating("student_logits", student_logits)
    check_floating("teacher_logits", teacher_logits)
    check_batch("student_logits", student_logits)
    teacher = without_absent(teacher_logits.detach(), weight)
    if link == "identity":
        # The divergence is half the squared difference, from which the temperature cancels.
        return weighted_mean((widened(student_logits) - widened(teacher)).square().sum(1) / 2, weight)
    p = _log_outcomes(teacher, temperature, link)  # [B, 1, K] or [B, K, 2]
    q = _log_outcomes(student_logits, temperature, link)
    divergence = _divergence(p, q).sum((1, 2))  # [B]
    return weighted_mean(divergence, weight) * temperature**2


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive and finite."""
    check_type("temperature", temperature, Real, "a number")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _log_outcomes(logits: Tensor, temperature: float, link: str) -> Tensor:
    """Softened log probabilities, normalized over the last dimension: [B, 1, K], for hazards [B, K, 2]."""
    softened = widened(logits) / temperature
    if link == "softmax":
        return F.log_softmax(softened, dim=-1)[:, None]
    return torch.stack([F.logsigmoid(softened), F.logsigmoid(-softened)], dim=-1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Terms of KL(p || q) from log probabilities, none of them negative: p log(p / q) + q - p."""
    # The terms q - p sum to zero. Without them, terms of both signs cancel, and the divergence of two close predictions
    # is only rounding.
    d = p - q
    near = d.abs() < 1
    # The branch that is not taken must stay finite in the gradient, and an outcome that p excludes counts nothing.
    small, large = torch.where(near, d, 0), torch.where(near | (p == -torch.inf), 0, d)
    return torch.where(near, p.exp() * (small.neg().expm1() + small), p.exp() * large + q.exp() - p.exp())
