"""Survival in intervals of time."""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._checks import as_numbers, check_count, check_interval, check_shape
from .._precision import widened
from ..losses.survival import discrete_time_nll
from ..ops import hazards
from .targets import SurvivalTarget, Target


@final
class DiscreteSurvival:
    """Survival in K intervals of time, by the hazard of dying in each.

    Interval k holds the times in ``[edges[k - 1], edges[k])``; the first is open toward 0, the last has no
    end. ``hazard(k) = sigmoid(logits[k])``.

    Args:
        edges: times that separate the intervals, in the unit of ``time`` everywhere; kept in float64 on the
            CPU, where times are compared with them.
        alpha: share by which censored patients are down-weighted in the loss, from 0 to 1.

    Shape:
        ``edges`` [K - 1].

    Raises:
        ValueError: ``edges`` do not increase strictly, are negative or not finite, or ``alpha`` is out of
            range.

    Source:
        The survival task of the paper (4 quartile bins); CGC's confidence in eq. 6.

    Differs from the source:
        The confidence is the likelihood of what was observed; the released code takes a softmax over the
        hazard logits, which are no distribution, and treats censored patients like deaths.

    Example:
        >>> import torch
        >>> from disentangled_mil import DiscreteSurvival
        >>> task = DiscreteSurvival.fit([1.0, 2.0, 3.0, 4.0, 9.0], event=[1, 1, 1, 1, 0])
        >>> task
        DiscreteSurvival(edges=[1.75, 2.5, 3.25], alpha=0.0)
        >>> task.target([0.0, 2.5, 20.0], event=[1, 0, 0])
        SurvivalTarget(interval=tensor([0, 2, 3]), event=tensor([ True, False, False]))
        >>> task.risk(torch.zeros(1, 4))
        tensor([-0.9375])
    """

    kind: Final = "hazards"

    def __init__(self, edges: Tensor, *, alpha: float = 0.0) -> None:
        check_shape("edges", edges, "E")
        check_interval("alpha", alpha, 0.0, 1.0)
        self.edges = edges.detach().to("cpu", torch.float64)
        self.alpha = float(alpha)
        self._device = torch.device("cpu")
        if not bool((self.edges.isfinite() & (self.edges >= 0)).all()):
            raise ValueError(f"edges must be finite and not negative, got {self.edges.tolist()}")
        if not bool((self.edges.diff() > 0).all()):
            raise ValueError(f"edges must increase strictly, got {self.edges.tolist()}")

    @classmethod
    def fit(
        cls,
        time: Iterable[float] | Tensor,
        *,
        event: Iterable[Any] | Tensor,
        bins: int = 4,
        alpha: float = 0.0,
    ) -> "DiscreteSurvival":
        """Put the edges at the quantiles of the training patients' observed times of death.

        Args:
            time: one time per training patient.
            event: 1 or True where the death was observed, 0 or False where the time is censored.
            bins: number K of intervals, each with the same share of the deaths.
            alpha: as for the class.

        Raises:
            TypeError: times or events are dates or spans of time, which have a unit.
            ValueError: a time is negative or not finite, an event not 0 or 1, no death was observed, or so
                many deaths share one time that an interval would be empty (take fewer bins).

        Example:
            >>> from disentangled_mil import DiscreteSurvival
            >>> DiscreteSurvival.fit([10.0, 20.0, 30.0], event=[1, 0, 1], bins=2).edges
            tensor([20.], dtype=torch.float64)
        """
        check_count("bins", bins)
        times, deaths = _observations(time, event)
        if not deaths.any():
            raise ValueError(f"event must hold an observed death to fit bins, got {len(deaths)} censored times")
        # In whole numbers, unlike np.quantile: an edge that is a time of death must not be rounded to just after it.
        dead = np.sort(times[deaths])
        below, part = np.divmod(np.arange(1, bins) * (len(dead) - 1), bins)
        edges = dead[below] + part / bins * np.diff(dead, append=dead[-1])[below]
        inside = np.histogram(dead, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
        if (inside == 0).any():
            raise ValueError(
                f"bins must leave no interval without a death, got bins = {bins} with edges {edges.tolist()} "
                f"for {deaths.sum()} times of death"
            )
        return cls(torch.from_numpy(edges), alpha=alpha)

    @property
    def outputs(self) -> int:
        """Number of logits, one per interval."""
        return len(self.edges) + 1

    def target(self, time: Iterable[float] | Tensor, *, event: Iterable[Any] | Tensor) -> SurvivalTarget:
        """The interval of each time, and whether the death was observed.

        Raises:
            TypeError: times or events are dates or spans of time, which have a unit.
            ValueError: a time is negative or not finite, or an event not 0 or 1.
        """
        times, deaths = _observations(time, event)
        interval = torch.bucketize(torch.from_numpy(times), self.edges, right=True)
        return SurvivalTarget(interval.to(self._device), torch.from_numpy(deaths).to(self._device))

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        """Mean negative log-likelihood of hazard logits [B, K], a scalar in at least float32."""
        check_shape("logits", logits, "B K", {"K": self.outputs})
        observed = _observed(target)
        return discrete_time_nll(logits, observed.interval, event=observed.event, alpha=self.alpha)

    @torch.no_grad()
    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """How sure each subspace is of what was observed: the sum over the batch of its likelihood, a scalar.

        ``h(k) S(k - 1)`` for a death in interval k, ``S(k)`` for a patient lost to follow-up in it.

        Shape:
            every tensor of ``subspace_logits`` [B, K].
        """
        target, scores = _observed(target), {}
        for subspace, logits in subspace_logits.items():
            check_shape(f"subspace_logits[{subspace!r}]", logits, "B K", {"K": self.outputs})
            nll = discrete_time_nll(logits, target.interval, event=target.event, reduction="none")  # [B]
            scores[subspace] = nll.neg().exp().sum()
        return scores

    def probabilities(self, logits: Tensor) -> Tensor:
        """Hazard of each interval [B, K]: the probability of dying in it for whoever entered it."""
        return widened(logits).sigmoid()

    def risk(self, logits: Tensor) -> Tensor:
        """Minus the expected number of intervals survived [B]; higher = worse."""
        return hazards.risk(logits)

    def to(self, device: torch.device | str) -> "DiscreteSurvival":
        """The task with its targets on another device."""
        task = copy(self)
        task._device = torch.device(device)
        return task

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the task with `task_from_state`, as plain JSON values."""
        return {"task": "survival", "edges": self.edges.tolist(), "alpha": self.alpha}

    def __repr__(self) -> str:
        return f"DiscreteSurvival(edges={[round(edge, 3) for edge in self.edges.tolist()]}, alpha={self.alpha})"


def _observed(target: Target) -> SurvivalTarget:
    """A target of `DiscreteSurvival`."""
    if not isinstance(target, SurvivalTarget):
        raise TypeError(f"target must be a SurvivalTarget (see DiscreteSurvival.target), got {type(target).__name__}")
    return target


def _observations(
    time: Iterable[float] | Tensor, event: Iterable[Any] | Tensor
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Checked times and events as arrays [B]."""
    times, events = _column("time", time), _column("event", event)
    if len(times) != len(events):
        raise ValueError(f"event must have one entry for each of the {len(times)} times, got {len(events)}")
    for name, values, valid, requirement in (
        ("time", times, np.isfinite(times) & (times >= 0), "finite and not negative"),
        ("event", events, (events == 0) | (events == 1), "0 (censored) or 1 (death observed)"),
    ):
        if not valid.all():
            row = int(np.argmin(valid))
            raise ValueError(f"{name} must be {requirement}, got {values[row]} at position {row}")
    return times, events == 1


def _column(name: str, values: Iterable[Any] | Tensor) -> npt.NDArray[np.float64]:
    """Numbers as a float64 array [B]."""
    column = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if column.ndim == 0 and isinstance(values, Iterable) and not isinstance(values, (str, Mapping, Tensor, np.ndarray)):
        column = np.array(list(values))  # a generator or a view, which is one object to NumPy
    if column.ndim != 1:
        raise ValueError(f"{name} must have shape [B], got {list(column.shape)}")
    return as_numbers(name, column)
