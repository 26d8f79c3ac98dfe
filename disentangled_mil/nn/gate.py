"""The gate that combines the predictions of several magnifications."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_floating, check_mask, check_names, check_shape, check_subspaces
from .._precision import widened
from ..ops.hazards import outcome_log_probability

RULES = ("max_confidence", "average", "softmax_average", "learned")


class GateOutput(NamedTuple):
    """The result of :class:`MagnificationGate`.

    Attributes:
        logits: combined logits [B, K].
        weights: weight of each of the M magnifications [B, M]. Rows sum to one.
    """

    logits: Tensor
    weights: Tensor


class MagnificationGate(nn.Module):
    r"""Combine the logits of several magnifications.

    .. math:: \mathrm{logits} = \sum_m w_m\,\mathrm{logits}_m, \qquad \sum_m w_m = 1

    The rule ``"softmax_average"`` averages probabilities instead of logits.

    Args:
        magnifications: names of the magnifications, in order.
        rule: rule of the weights. ``"max_confidence"`` takes the most confident magnification of each sample, and the
            first one in a tie. ``"average"`` averages logits. ``"softmax_average"`` averages probabilities.
            ``"learned"`` averages logits with one learned weight per magnification.
        link: meaning of the logits: ``"softmax"`` over classes, ``"hazards"`` of survival intervals, or ``"identity"``
            of numbers. The confidence is the largest probability of an outcome. Outcomes are the classes, or the
            event in each of the intervals and survival of all of them. Numbers have no confidence, and
            ``"softmax_average"`` averages them like ``"average"``.

    Shape:
        {magnification: [B, K]}, ``present`` [B, M] -> logits [B, K].

    Returns:
        A :class:`GateOutput`.

    Raises:
        TypeError: logits are no mapping, or not floating-point.
        ValueError: names or shapes disagree, or an option is unknown.

    Source:
        The "dual-expert gate" of the paper.

    Differs from the source:
        A softmax over hazard logits is no confidence, so hazards have a rule of their own. A sample may lack a
        magnification.

    Example:
        >>> import torch
        >>> from disentangled_mil import MagnificationGate
        >>> gate = MagnificationGate(("10x", "20x"))
        >>> gate({"10x": torch.tensor([[0.0, 1.0]]), "20x": torch.tensor([[3.0, 0.0]])}).weights.tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, magnifications: Sequence[str], *, rule: str = "max_confidence", link: str = "softmax") -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        check_choice("rule", rule, RULES)
        check_choice("link", link, ("softmax", "hazards", "identity"))
        if link == "identity" and rule == "max_confidence":
            raise ValueError("rule must be an average for numbers, which have no confidence, got 'max_confidence'")
        self.rule, self.link = rule, link
        self.mixture = nn.Parameter(torch.zeros(len(self.magnifications))) if rule == "learned" else None

    def forward(self, logits: Mapping[str, Tensor], present: Tensor | None = None) -> GateOutput:
        """Combine the logits, and return the weight of each magnification.

        Args:
            logits: logits of every magnification.
            present: mask of the magnifications that a sample has; the others have weight zero. It has all by default. A
                sample that has none is treated as if it had all.

        Returns:
            Combined logits and weights.
        """
        check_names("logits", logits, self.magnifications)
        sizes: dict[str, int] = {}
        for name in self.magnifications:
            sizes |= check_shape(f"logits[{name!r}]", logits[name], "B K", sizes)
            check_floating(f"logits[{name!r}]", logits[name])
        stacked = torch.stack([logits[name] for name in self.magnifications], dim=1)  # [B, M, K]
        if present is None:
            present = torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)
        check_mask("present", present, "B M", {"B": stacked.shape[0], "M": stacked.shape[1]})
        present = present | ~present.any(1, keepdim=True)
        if self.rule == "softmax_average":
            even = present.to(stacked.dtype) / present.sum(1, keepdim=True)
            return GateOutput(self._average_probabilities(stacked, present).to(stacked.dtype), even)
        weights = self._weights(stacked, present)
        # An infinite logit of weight zero must not become NaN.
        shares = torch.where(weights[..., None] > 0, weights[..., None] * stacked, 0)
        return GateOutput(shares.sum(1), weights)

    def _weights(self, logits: Tensor, present: Tensor) -> Tensor:
        """The weight of each magnification [B, M]."""
        if self.rule == "max_confidence":
            outcomes = outcome_log_probability(logits) if self.link == "hazards" else widened(logits)
            confidence = _log_odds_of_largest(outcomes).masked_fill(~present, -inf)  # [B, M]
            return nn.functional.one_hot(confidence.argmax(1), logits.shape[1]).to(logits.dtype)
        if self.mixture is not None:
            return torch.where(present, self.mixture, -inf).softmax(1).to(logits.dtype)
        return present.to(logits.dtype) / present.sum(1, keepdim=True)

    def _log_probability(self, logits: Tensor) -> Tensor:
        return outcome_log_probability(logits) if self.link == "hazards" else widened(logits).log_softmax(-1)

    def _average_probabilities(self, logits: Tensor, present: Tensor) -> Tensor:
        """Logits [B, K] whose probabilities are the mean of those of the magnifications; the mean of numbers."""
        present, count = present[..., None], present.sum(1, keepdim=True).to(widened(logits).dtype)
        if self.link == "identity":
            return torch.where(present, widened(logits), 0).sum(1) / count
        mean = self._log_probability(logits).masked_fill(~present, -inf).logsumexp(1) - count.log()
        if self.link == "softmax":
            return mean
        # The odds of a hazard are the probability of the event in the interval over that of a later event or survival.
        later = mean.flip(-1).logcumsumexp(-1).flip(-1)[:, 1:]
        return mean[:, :-1] - later

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return f"{self.magnifications}, rule={self.rule!r}, link={self.link!r}"


def _log_odds_of_largest(log_weight: Tensor) -> Tensor:
    """Log odds of the largest probability [..., K] -> [...]."""
    # Log odds differ where probabilities round to one. Sorting makes equal values in other places a tie.
    ordered = log_weight.sort(-1, descending=True).values
    return ordered[..., 0] - ordered[..., 1:].logsumexp(-1)
