"""What is predicted: the target, the loss, the confidence and the prediction of one task, in one object."""

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Final, NamedTuple, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._checks import check_count, check_integers, check_interval, check_shape, check_values
from .losses._reduction import check_batch
from .losses.survival import discrete_time_nll
from .ops import hazards

__all__ = ["Classification", "DiscreteSurvival", "SurvivalTarget", "Target", "Task", "task_from_state"]


class SurvivalTarget(NamedTuple):
    """What was observed of each patient.

    Attributes:
        interval: interval of the last observation [B], int64.
        event: True where the death was observed, False where the time is censored [B], bool.
    """

    interval: Tensor
    event: Tensor


Target: TypeAlias = Tensor | SurvivalTarget


@final
class Classification:
    """One class out of several: diagnosis, grade.

    ``loss = mean_i w(y_i) * (-log softmax(logits_i)[y_i])``.

    Args:
        classes: names of the classes, in the order of the logits.
        class_weight: weight w of each class in the loss, 1 by default.

    Shape:
        ``class_weight`` [K].

    Raises:
        TypeError: ``classes`` is one string or holds something else.
        ValueError: there is no class, a class comes twice, or a weight is negative or not finite.

    Source:
        Cross-entropy; the confidence is that of CGC (eq. 6 of the paper).

    Differs from the source:
        The weighted loss is divided by the number of samples, not by the sum of their weights: otherwise the
        weight cancels in a batch of one, and gradients accumulated over small batches depend on how they were
        drawn.

    Example:
        >>> import torch
        >>> from disentangled_mil import Classification
        >>> task = Classification.fit(["low", "high", "low", "low"])
        >>> task
        Classification(classes=('high', 'low'), class_weight=[2.0, 0.667])
        >>> task.target(["low", "high"])
        tensor([1, 0])
        >>> task.loss(torch.zeros(2, 2), task.target(["low", "high"]))
        tensor(0.9242)
    """

    kind: Final = "softmax"

    def __init__(self, classes: Iterable[str], *, class_weight: Tensor | None = None) -> None:
        self.classes = _strings("classes", classes)
        if not self.classes:
            raise ValueError("classes must name at least one class, got none")
        repeated = [name for name, count in Counter(self.classes).items() if count > 1]
        if repeated:
            raise ValueError(f"classes must be distinct, got {repeated[0]!r} more than once")
        if class_weight is not None:
            check_shape("class_weight", class_weight, "K", {"K": len(self.classes)})
            class_weight = class_weight.float()
            if not bool((class_weight.isfinite() & (class_weight >= 0)).all()):
                raise ValueError(f"class_weight must be finite and not negative, got {class_weight.tolist()}")
        self.class_weight = class_weight
        self._device = torch.device("cpu") if class_weight is None else class_weight.device

    @classmethod
    def fit(
        cls, labels: Iterable[str], classes: Iterable[str] | None = None, balanced: bool = True
    ) -> "Classification":
        """Take classes and weights from the training patients' labels.

        Args:
            labels: one label per training patient.
            classes: the classes in order; by default those of ``labels``, sorted.
            balanced: weigh class k by ``n / (K * n_k)``, so that every class counts the same and the mean
                weight of a training patient is 1.

        Raises:
            TypeError: ``labels`` or ``classes`` is one string or holds something else, a missing value say.
            ValueError: a label is no class, or there is no label of a class that is to be balanced.

        Example:
            >>> from disentangled_mil import Classification
            >>> Classification.fit(["2", "4", "4"], classes=["2", "3", "4"], balanced=False).outputs
            3
        """
        names = _strings("labels", labels)
        task = cls(sorted(set(names)) if classes is None else classes)
        counts = torch.bincount(task.target(names), minlength=task.outputs)  # [K]
        if not balanced:
            return task
        for name, count in zip(task.classes, counts.tolist(), strict=True):
            if count == 0:
                raise ValueError(f"labels must hold every class to balance them, got no {name!r}")
        return cls(task.classes, class_weight=len(names) / (task.outputs * counts))

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return len(self.classes)

    def target(self, labels: Iterable[str]) -> Tensor:
        """Class indices [B], int64, of labels.

        Raises:
            TypeError: ``labels`` is one string or holds something else, a missing value say.
            ValueError: a label is no class.
        """
        index = {name: k for k, name in enumerate(self.classes)}
        names = _strings("labels", labels)
        for row, name in enumerate(names):
            if name not in index:
                raise ValueError(f"labels must be among {list(self.classes)}, got {name!r} at position {row}")
        return torch.tensor([index[name] for name in names], dtype=torch.int64, device=self._device)

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        """Mean weighted cross-entropy of logits [B, K] and class indices [B], a scalar.

        Raises:
            TypeError: ``target`` is not an integer tensor.
            ValueError: a shape differs, the batch is empty, or, on the CPU, an index is of no class (on a GPU, where
                values are not read, it fails the kernel).
        """
        sizes = check_shape("logits", logits, "B K", {"K": self.outputs})
        target = _class_indices(target, sizes)
        check_batch("logits", logits)
        logits = _wide(logits)
        # Not F.cross_entropy, whose ignore_index would count as a loss of 0.
        loss = -logits.log_softmax(-1).gather(1, target[:, None])[:, 0]  # [B]
        return (loss if self.class_weight is None else self.class_weight.to(logits.dtype)[target] * loss).mean()

    @torch.no_grad()
    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """How sure each subspace is of the truth: ``softmax(logits)[target]`` summed over the batch.

        Shape:
            every tensor of ``subspace_logits`` [B, K]; ``target`` [B].
        """
        scores = {}
        for subspace, logits in subspace_logits.items():
            sizes = check_shape(f"subspace_logits[{subspace!r}]", logits, "B K", {"K": self.outputs})
            target = _class_indices(target, sizes)
            scores[subspace] = self.probabilities(logits).gather(1, target[:, None]).sum()
        return scores

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class [B, K]."""
        return _wide(logits).softmax(-1)

    def to(self, device: torch.device | str) -> "Classification":
        """The task with its weights and targets on another device."""
        task = copy(self)
        task.class_weight = None if self.class_weight is None else self.class_weight.to(device)
        task._device = torch.device(device)
        return task

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the task with `task_from_state`, as plain JSON values."""
        weight = None if self.class_weight is None else self.class_weight.tolist()
        return {"task": "classification", "classes": list(self.classes), "class_weight": weight}

    def __repr__(self) -> str:
        weight = None if self.class_weight is None else [round(w, 3) for w in self.class_weight.tolist()]
        return f"Classification(classes={self.classes}, class_weight={weight})"


@final
class DiscreteSurvival:
    """Survival in K intervals of time, by the hazard of dying in each.

    Interval k holds the times in ``[edges[k - 1], edges[k])``; the first is open towards 0, the last has no
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
        return _wide(logits).sigmoid()

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


Task: TypeAlias = Classification | DiscreteSurvival


def task_from_state(state: Mapping[str, Any]) -> Task:
    """Rebuild a task from what its ``state()`` returned.

    Raises:
        ValueError: the state is of no known task.

    Example:
        >>> from disentangled_mil import Classification, task_from_state
        >>> task_from_state(Classification(["low", "high"]).state())
        Classification(classes=('low', 'high'), class_weight=None)
    """
    kind = state.get("task")
    if kind == "classification":
        weight = state["class_weight"]
        return Classification(state["classes"], class_weight=None if weight is None else torch.tensor(weight))
    if kind == "survival":
        return DiscreteSurvival(torch.tensor(state["edges"], dtype=torch.float64), alpha=state["alpha"])
    raise ValueError(f"state must be of 'classification' or 'survival', got {kind!r}")


def _class_indices(target: Target, sizes: Mapping[str, int]) -> Tensor:
    """A target of `Classification`."""
    check_shape("target", target, "B", sizes)  # type: ignore[arg-type]  # refuses what is no tensor
    check_integers("target", cast(Tensor, target))
    indices = cast(Tensor, target).long()
    last = sizes["K"] - 1
    check_values("target", indices, f"be a class index from 0 to {last}", lambda k: (k >= 0) & (k <= last))
    return indices


def _observed(target: Target) -> SurvivalTarget:
    """A target of `DiscreteSurvival`."""
    if not isinstance(target, SurvivalTarget):
        raise TypeError(f"target must be a SurvivalTarget (see DiscreteSurvival.target), got {type(target).__name__}")
    return target


def _wide(logits: Tensor) -> Tensor:
    """Logits in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _strings(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Several names; one string is a sequence of characters, which nobody means."""
    if isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of strings, got the string {values!r}")
    given = tuple(values)
    for row, value in enumerate(given):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of strings, got {value!r} at position {row}")
    return tuple(map(str, given))


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
    return column.astype(np.float64)
