"""How the magnifications' predictions become one."""

from collections.abc import Mapping, Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_floating, check_names, check_shape, check_subspaces
from .._precision import widened
from ..ops.hazards import outcome_log_probability

RULES = ("max_confidence", "average", "softmax_average", "learned")


class GateOutput(NamedTuple):
    """What :class:`MagnificationGate` returns.

    Attributes:
        logits: [B, K].
        weights: share of each magnification [B, M]; rows sum to one.
    """

    logits: Tensor
    weights: Tensor


class MagnificationGate(nn.Module):
    """Combine the logits of several magnifications.

    Args:
        magnifications: names, in order; any number of them.
        rule: ``"max_confidence"`` takes, per sample, the most confident magnification (the first in a tie);
            ``"average"`` averages logits; ``"softmax_average"`` averages probabilities; ``"learned"`` averages
            logits with one learned weight per magnification.
        kind: ``"softmax"`` for class logits; ``"hazards"`` for discrete-time hazard logits; ``"identity"`` for
            numbers, which ``"softmax_average"`` averages as they are. The confidence is the largest probability among
            the possible outcomes: the classes, or the intervals in which the event can fall and outliving them all.
            Numbers have none.

    Shape:
        {magnification: [B, K]} -> logits [B, K].

    Raises:
        TypeError: logits are no mapping, or not floating-point.
        ValueError: names or shapes disagree, or an option is unknown.

    Source: the paper's "dual-expert gate".
    Differs from the source: the softmax over hazard logits is no confidence, so hazards have a rule of their own.

    Example:
        >>> import torch
        >>> from disentangled_mil import MagnificationGate
        >>> gate = MagnificationGate(("10x", "20x"))
        >>> gate({"10x": torch.tensor([[0.0, 1.0]]), "20x": torch.tensor([[3.0, 0.0]])}).weights.tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, magnifications: Sequence[str], *, rule: str = "max_confidence", kind: str = "softmax") -> None:
        super().__init__()
        self.magnifications = check_subspaces(magnifications, "magnifications")
        check_choice("rule", rule, RULES)
        check_choice("kind", kind, ("softmax", "hazards", "identity"))
        if kind == "identity" and rule == "max_confidence":
            raise ValueError("rule must be an average for numbers, which have no confidence, got 'max_confidence'")
        self.rule, self.kind = rule, kind
        self.mixture = nn.Parameter(torch.zeros(len(self.magnifications))) if rule == "learned" else None

    def forward(self, logits: Mapping[str, Tensor]) -> GateOutput:
        """Combined logits, and how much each magnification counted."""
        check_names("logits", logits, self.magnifications)
        sizes: dict[str, int] = {}
        for name in self.magnifications:
            sizes |= check_shape(f"logits[{name!r}]", logits[name], "B K", sizes)
            check_floating(f"logits[{name!r}]", logits[name])
        stacked = torch.stack([logits[name] for name in self.magnifications], dim=1)  # [B, M, K]
        if self.rule == "softmax_average":
            even = stacked.new_full(stacked.shape[:2], 1 / stacked.shape[1])
            return GateOutput(self._average_probabilities(stacked).to(stacked.dtype), even)
        weights = self._weights(stacked)
        # A magnification without weight has no say, not even by an infinite logit.
        shares = torch.where(weights[..., None] > 0, weights[..., None] * stacked, 0)
        return GateOutput(shares.sum(1), weights)

    def _weights(self, logits: Tensor) -> Tensor:
        """Share of each magnification [B, M]."""
        if self.rule == "max_confidence":
            outcomes = outcome_log_probability(logits) if self.kind == "hazards" else widened(logits)
            confidence = _log_odds_of_largest(outcomes)  # [B, M]
            return nn.functional.one_hot(confidence.argmax(1), logits.shape[1]).to(logits.dtype)
        if self.mixture is not None:
            return self.mixture.softmax(0).to(logits.dtype).expand(logits.shape[:2])
        return logits.new_full(logits.shape[:2], 1 / logits.shape[1])

    def _log_probability(self, logits: Tensor) -> Tensor:
        return outcome_log_probability(logits) if self.kind == "hazards" else widened(logits).log_softmax(-1)

    def _average_probabilities(self, logits: Tensor) -> Tensor:
        """Logits whose probabilities are the mean of the magnifications' probabilities; the mean of numbers."""
        if self.kind == "identity":
            return widened(logits).mean(1)
        mean = self._log_probability(logits).logsumexp(1) - log(logits.shape[1])
        if self.kind == "softmax":
            return mean
        # The odds of an interval's hazard: the event falls in it, over: it falls later or never.
        later = mean.flip(-1).logcumsumexp(-1).flip(-1)[:, 1:]
        return mean[:, :-1] - later

    def extra_repr(self) -> str:
        """Options as given."""
        return f"{self.magnifications}, rule={self.rule!r}, kind={self.kind!r}"


def _log_odds_of_largest(log_weight: Tensor) -> Tensor:
    """Log odds of the largest probability [..., K] -> [...], which tell apart what rounds to a probability of one."""
    # In order, so that the same values in other places are a tie.
    ordered = log_weight.sort(-1, descending=True).values
    return ordered[..., 0] - ordered[..., 1:].logsumexp(-1)
