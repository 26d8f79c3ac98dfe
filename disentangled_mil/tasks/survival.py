"""Survival in intervals of time."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from math import isfinite
from types import MappingProxyType
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._checks import as_number, as_numbers, check_choice, check_count, check_interval, check_mapping, check_shape
from .._precision import widened
from .._schema import check_state
from ..losses.survival import discrete_time_nll
from ..ops import hazards
from .targets import SurvivalTarget, Target
from .task import Column, Labels, Task

# Columns of such names often hold 1 for patients without the event.
_OPPOSITE = re.compile("cens|alive|living|survived", re.IGNORECASE)


@final
class DiscreteSurvival(Task):
    """Survival in K intervals of time, by the hazard of the event in each.

    The event happens at most once, such as death or recurrence. Interval k holds the times in
    ``[edges[k - 1], edges[k])``; the first begins at 0, and the last has no end. ``hazard(k) = sigmoid(logits[k])``.

    Args:
        edges: times that separate the intervals, in the unit of ``time``. They are kept in float64 on the CPU, where
            times are compared with them.
        alpha: share by which censored patients are down-weighted in the loss, from 0 to 1.

    Shape:
        ``edges`` [K - 1].

    Raises:
        ValueError: ``edges`` do not increase strictly, are negative or not finite, or ``alpha`` is out of range.

    Source:
        The survival task of the paper (4 quartile bins); CGC's confidence in eq. 6.

    Differs from the source:
        The confidence is the likelihood of the observation. The released code takes a softmax over the hazard logits,
        which are no distribution, and treats censored times like events.

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

    kind: ClassVar[str] = "survival"
    link: ClassVar[str] = "hazards"
    columns: ClassVar[tuple[Column, ...]] = (Column("time", "time"), Column("event", "event"))
    options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"observed": "1", "censored": "0", "zero_times": "refuse", "bins": 4, "alpha": 0.0},
    )
    headline: ClassVar[Mapping[str, str]] = MappingProxyType({"c_index": "C-index"})
    counts: ClassVar[frozenset[str]] = frozenset(
        ("patients", "events", "comparable_pairs", "concordant", "discordant", "tied_risk", "tied_time")
    )
    undefined: ClassVar[str] = "nan: in a test set no event was observed before another patient's time"

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
        """Fit the edges: quantiles of the observed times of the event among training patients.

        Args:
            time: time of every training patient.
            event: observations, 1 or True for an observed event, 0 or False for a censored time.
            bins: number K of intervals, which hold equal shares of the events.
            alpha: share by which censored patients are down-weighted in the loss.

        Returns:
            The task.

        Raises:
            TypeError: times or events are dates or spans of time, which have a unit.
            ValueError: a time is negative or not finite, an event is not 0 or 1, no event was observed, or an interval
                would have no event because many events share one time (take fewer bins).

        Example:
            >>> from disentangled_mil import DiscreteSurvival
            >>> DiscreteSurvival.fit([10.0, 20.0, 30.0], event=[1, 0, 1], bins=2).edges
            tensor([20.], dtype=torch.float64)
        """
        check_count("bins", bins)
        times, observed = _observations(time, event)
        _check_any_event(observed)
        events = int(observed.sum())
        if bins > events:
            raise ValueError(
                f"bins must be at most the number of observed events, {events}, got {bins}: set bins to {events} or "
                "less"
            )
        # In whole numbers, unlike np.quantile: an edge that is a time of an event must not be rounded to just after it.
        ordered = np.sort(times[observed])
        below, part = np.divmod(np.arange(1, bins) * (len(ordered) - 1), bins)
        edges = ordered[below] + part / bins * np.diff(ordered, append=ordered[-1])[below]
        inside = np.histogram(ordered, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
        if (inside == 0).any():
            raise ValueError(
                f"bins must leave no interval without an event, got bins = {bins} with edges {edges.tolist()} "
                f"for {events} observed events; several share a time: take fewer bins"
            )
        return cls(torch.from_numpy(edges), alpha=alpha)

    @classmethod
    def expanded(cls, keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace ``censorship``, a column in which 1 is a censored time, by an event column with this coding."""
        if "censorship" not in keys:
            return keys
        if both := [key for key in ("event", "observed", "censored") if key in keys]:
            raise ValueError(
                f"censorship names a column in which 1 is censored and 0 an event, and stands alone, got {both[0]} "
                "as well"
            )
        others = {key: value for key, value in keys.items() if key != "censorship"}
        return {**others, "event": keys["censorship"], "observed": "0", "censored": "1"}

    @classmethod
    def check(cls, columns: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Check columns and options, and refuse an event column whose name suggests the opposite coding."""
        if columns["time"] == columns["event"]:
            raise ValueError(f"time and event must be two columns, got {columns['time']!r} for both")
        check_choice("zero_times", options.get("zero_times", "refuse"), ("refuse", "keep"))
        check_count("bins", options.get("bins", 1))
        check_interval("alpha", options.get("alpha", 0.0), 0.0, 1.0)
        observed, censored = (options.get(key, cls.options[key]) for key in ("observed", "censored"))
        for key, value in (("observed", observed), ("censored", censored)):
            if not str(value).strip():
                raise ValueError(f"{key} must be a value of the event column, and not an empty cell, got {value!r}")
        if _same(observed, censored):
            raise ValueError(f"observed and censored must be two values of the event column, got {observed!r} for both")
        if _OPPOSITE.search(columns["event"]) and not {"observed", "censored"} <= options.keys():
            raise ValueError(
                f"event must be a column in which 1 is an observed event, and {columns['event']!r} may be one of "
                'censorship: say which with observed = "0" and censored = "1", or observed = "1" and censored = "0"; '
                f"censorship = {columns['event']!r} in place of event says that 1 is censored"
            )

    @classmethod
    def named_values(cls, key: str, options: Mapping[str, Any]) -> Sequence[str]:
        """The values of an observed event and of a censored time."""
        return (str(options["observed"]), str(options["censored"])) if key == "event" else ()

    @classmethod
    def check_labels(cls, labels: Labels) -> None:
        """Refuse labels without an observed event."""
        _check_any_event(labels["event"])

    @classmethod
    def read(cls, key: str, value: Any, options: Mapping[str, Any]) -> float | bool:
        """Read a time, or whether the event was observed."""
        if key == "time":
            number = as_number(value)
            if not (isfinite(number) and number >= 0):
                raise ValueError(f"time must be a number >= 0, got {value!r}; an empty cell leaves the patient out")
            if number == 0 and options["zero_times"] == "refuse":
                raise ValueError(
                    "time must be greater than 0, got 0, which is often a missing follow-up: empty the cell, or keep "
                    'such times by zero_times = "keep"'
                )
            return number
        observed, censored = options["observed"], options["censored"]
        # cBioPortal writes the number and its meaning: 1:DECEASED, 0:LIVING.
        prefix, _, word = value.partition(":") if isinstance(value, str) else (str(value), "", "")
        for marker, meaning in ((observed, True), (censored, False)):
            if _same(value, marker) or (_same(prefix, marker) and not (meaning and _OPPOSITE.search(word))):
                return meaning
        raise ValueError(
            f"event must be {observed} (event observed) or {censored} (censored), got {value!r}; other values are "
            "named by observed and censored"
        )

    @classmethod
    def strata(cls, labels: Labels) -> list[Hashable]:
        """Whether the event was observed, of every patient."""
        return ["observed" if event else "censored" for event in labels["event"]]

    @classmethod
    def summary(cls, labels: Labels) -> str:
        """The number of observed events and of censored times."""
        events = sum(labels["event"])
        return f"events {events}, censored {len(labels['event']) - events}"

    @classmethod
    def chance(cls, labels: Labels) -> Mapping[str, float]:
        """C-index 0.5."""
        return {"c_index": 0.5}

    @classmethod
    def fit_labels(cls, labels: Labels, options: Mapping[str, Any]) -> "DiscreteSurvival":
        """Fit the intervals on the labels of training patients."""
        return cls.fit(labels["time"], event=labels["event"], bins=options["bins"], alpha=options["alpha"])

    @property
    def outputs(self) -> int:
        """Number of logits, one per interval."""
        return len(self.edges) + 1

    def target(self, time: Iterable[float] | Tensor, *, event: Iterable[Any] | Tensor) -> SurvivalTarget:
        """The interval of each time, and whether the event was observed.

        Args:
            time: time of every patient.
            event: observations, 1 or True for an observed event, 0 or False for a censored time.

        Returns:
            The target of the loss.

        Raises:
            TypeError: times or events are dates or spans of time, which have a unit.
            ValueError: a time is negative or not finite, or an event not 0 or 1.
        """
        times, observed = _observations(time, event)
        interval = torch.bucketize(torch.from_numpy(times), self.edges, right=True)
        return SurvivalTarget(interval.to(self._device), torch.from_numpy(observed).to(self._device))

    def target_of_labels(self, labels: Labels) -> SurvivalTarget:
        """The interval of each time, and whether the event was observed."""
        return self.target(labels["time"], event=labels["event"])

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        """Mean negative log-likelihood of hazard logits [B, K], a scalar in at least float32."""
        check_shape("logits", logits, "B K", {"K": self.outputs})
        observed = _observed(target)
        return discrete_time_nll(logits, observed.interval, event=observed.event, alpha=self.alpha)

    @torch.no_grad()
    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Confidence of every subspace: the likelihood of the observation, summed over the batch.

        The likelihood is ``h(k) S(k - 1)`` for an event in interval k, and ``S(k)`` for a time censored in it.

        Args:
            subspace_logits: hazard logits of every subspace.
            target: observations.

        Shape:
            every tensor of ``subspace_logits`` [B, K].

        Returns:
            A scalar per subspace.
        """
        check_mapping("subspace_logits", subspace_logits)
        target, scores = _observed(target), {}
        for subspace, logits in subspace_logits.items():
            check_shape(f"subspace_logits[{subspace!r}]", logits, "B K", {"K": self.outputs})
            nll = discrete_time_nll(logits, target.interval, event=target.event, reduction="none")  # [B]
            scores[subspace] = nll.neg().exp().sum()
        return scores

    def probabilities(self, logits: Tensor) -> Tensor:
        """Hazard of each interval [B, K]: the probability of the event in it for a patient who entered it."""
        return widened(logits).sigmoid()

    def risk(self, logits: Tensor) -> Tensor:
        """Minus the expected number of intervals survived [B]; higher = worse."""
        return hazards.risk(logits)

    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        """The columns ``hazard_0`` ... and ``risk`` (higher = worse)."""
        hazard = {f"hazard_{k}": column for k, column in enumerate(self.probabilities(logits).unbind(-1))}
        return {**hazard, "risk": self.risk(logits)}

    def explained(self, logits: Tensor) -> str:
        """The risk."""
        return "risk"

    @classmethod
    def mean_predictions(cls, tasks: Sequence["DiscreteSurvival"], logits: Sequence[Tensor]) -> dict[str, Tensor]:
        """The mean risk; the mean hazards as well, if all models have the same intervals."""
        means = super().mean_predictions(tasks, logits)
        same = all(torch.equal(task.edges, tasks[0].edges) for task in tasks)
        return means if same else {"risk": means["risk"]}

    def metrics(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> dict[str, float]:
        """C-index of the risk and its counts, see :func:`disentangled_mil.metrics.survival_metrics`."""
        from ..metrics import survival_metrics

        return survival_metrics(self.risk(logits), labels["time"], event=labels["event"], patients=patients)

    def headline_metric(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> float:
        """The C-index, see :func:`disentangled_mil.metrics.survival_concordance`."""
        from ..metrics import survival_concordance

        return survival_concordance(self.risk(logits), labels["time"], event=labels["event"], patients=patients)

    def to(self, device: torch.device | str) -> "DiscreteSurvival":
        """The task with its targets on another device."""
        task = copy(self)
        task._device = torch.device(device)
        return task

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the task with :func:`task_from_state`, as plain JSON values."""
        return {"kind": self.kind, "edges": self.edges.tolist(), "alpha": self.alpha}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DiscreteSurvival":
        """Rebuild the task from its state."""
        check_state(state, {"kind": str, "edges": list[float], "alpha": float})
        return cls(torch.tensor(state["edges"], dtype=torch.float64), alpha=state["alpha"])

    def __repr__(self) -> str:
        return f"DiscreteSurvival(edges={[round(edge, 3) for edge in self.edges.tolist()]}, alpha={self.alpha})"


def _same(value: Any, marker: Any) -> bool:
    """Whether two values of a table are one: equal numbers, or equal texts but for case."""
    numbers = as_number(value), as_number(marker)
    return numbers[0] == numbers[1] or str(value).casefold() == str(marker).casefold()


def _check_any_event(observed: Sequence[bool] | npt.NDArray[np.bool_]) -> None:
    """Check that the event of at least one patient was observed."""
    if not any(observed):
        raise ValueError(
            f"event must hold an observed event, got {len(observed)} censored times; say by observed and censored "
            "which value is which, or name another column"
        )


def _observed(target: Target) -> SurvivalTarget:
    """A target of :class:`DiscreteSurvival`."""
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
        ("event", events, (events == 0) | (events == 1), "0 (censored) or 1 (event observed)"),
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
