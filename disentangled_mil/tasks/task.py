"""The interface of a task, and how a cohort defines one.

A kind of task is one subclass of :class:`Task`. Its class attributes and class methods concern labels before anything
is fitted: their columns, the reading of a cell, the strata of patients. :meth:`Task.fit_labels` fits the task on
training patients. The fitted task owns the target, the loss, the confidence, the predictions and the metrics.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from .._checks import check_names, did_you_mean
from .targets import Target

# One entry per patient under the name of every column of the kind.
Labels: TypeAlias = Mapping[str, Sequence[Any]]
SomeTask = TypeVar("SomeTask", bound="Task")


class Column(NamedTuple):
    """A column of the clinical table that a kind of task reads.

    Attributes:
        key: key that names the column in a description.
        name: name of the labels that come from it, also in tables of predictions.
    """

    key: str
    name: str


class Task(ABC):
    """What is predicted: one subclass per kind of task.

    Attributes:
        kind: name of the kind in descriptions and checkpoints.
        link: function that makes predictions of logits: ``"softmax"`` over classes, ``"hazards"`` of intervals, or
            ``"identity"``.
        columns: columns that hold the labels.
        options: options of a description with their defaults, which are bool, int, float, str or a tuple of str.
        headline: metrics of the table of results, with their titles. The first one compares models.
        titles: titles of other metrics that need one.
        errors: metrics for which less is better.
        counts: metrics that count patients or pairs and do not measure quality.
        undefined: explanation of a metric without a value.

    Example:
        >>> from disentangled_mil.tasks import Classification
        >>> Classification.kind, Classification.link, [column.key for column in Classification.columns]
        ('classification', 'softmax', ['column'])
    """

    kind: ClassVar[str]
    link: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    headline: ClassVar[Mapping[str, str]]
    titles: ClassVar[Mapping[str, str]] = MappingProxyType({})
    errors: ClassVar[frozenset[str]] = frozenset()
    counts: ClassVar[frozenset[str]] = frozenset({"patients"})
    undefined: ClassVar[str]

    @classmethod
    def define(cls, **keys: Any) -> "TaskDefinition":
        """Define a task of this kind for a cohort.

        Args:
            **keys: names of the columns and options, as in a description.

        Returns:
            The definition.

        Raises:
            ValueError: a column is not named, a key is unknown, or an option is out of range.

        Example:
            >>> from disentangled_mil.tasks import DiscreteSurvival
            >>> definition = DiscreteSurvival.define(time="os_days", event="relapse", bins=3)
            >>> definition.columns, definition.options["bins"]
            ({'time': 'os_days', 'event': 'relapse'}, 3)
        """
        keys = dict(cls.expanded(keys))
        names = {column.key for column in cls.columns}
        columns = {key: value for key, value in keys.items() if key in names}
        return TaskDefinition(cls, columns, {key: value for key, value in keys.items() if key not in names})

    @classmethod
    def expanded(cls, keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace a key of a description that stands for several; by default there is none.

        Args:
            keys: keys of a description with their values.

        Returns:
            The keys of ``columns`` and ``options`` that they mean.

        Raises:
            ValueError: keys contradict each other.
        """
        return keys

    @classmethod  # noqa: B027  (a kind need not override it)
    def check(cls, columns: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Check a definition; by default nothing is refused.

        Args:
            columns: column of the clinical table for every key.
            options: options that were given, without defaults.

        Raises:
            ValueError: an option is out of range, or a column cannot serve.
        """

    @classmethod
    def named_values(cls, key: str, options: Mapping[str, Any]) -> Sequence[str]:
        """The values of a column that the options name, which are never missing ones; by default none.

        Args:
            key: key of the column.
            options: all options of the definition.

        Returns:
            The values.
        """
        return ()

    @classmethod  # noqa: B027  (a kind need not override it)
    def check_labels(cls, labels: Labels) -> None:
        """Check that labels differ, so that a model can learn and be tested; by default nothing is refused.

        Args:
            labels: labels of several patients.

        Raises:
            ValueError: the labels are all alike.
        """

    @classmethod
    @abstractmethod
    def read(cls, key: str, value: Any, options: Mapping[str, Any]) -> Any:
        """Read one cell of the clinical table that is not missing.

        Args:
            key: key of the column.
            value: text of the cell, or the value of a table in memory.
            options: all options of the definition.

        Returns:
            The label.

        Raises:
            ValueError: the value is no label of this kind.
        """

    @classmethod
    @abstractmethod
    def strata(cls, labels: Labels) -> list[Hashable]:
        """The stratum of every patient, by which folds are balanced."""

    @classmethod
    @abstractmethod
    def summary(cls, labels: Labels) -> str:
        """The labels in a few words, for instance the number of patients per class."""

    @classmethod
    def chance(cls, labels: Labels) -> Mapping[str, float]:
        """The metrics of predictions that know nothing of the patients; by default none is known.

        Args:
            labels: labels of the test patients.

        Returns:
            The value by metric; metrics without a known value are left out.
        """
        return {}

    @classmethod
    @abstractmethod
    def fit_labels(cls: type[SomeTask], labels: Labels, options: Mapping[str, Any]) -> SomeTask:
        """Fit the task on training patients.

        Args:
            labels: labels of the training patients.
            options: all options of the definition.

        Returns:
            The task.

        Raises:
            ValueError: the labels do not allow it.
        """

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of logits K."""

    @abstractmethod
    def target_of_labels(self, labels: Labels) -> Target:
        """The target of the loss, one row per patient."""

    @abstractmethod
    def loss(self, logits: Tensor, target: Target) -> Tensor:
        """Mean loss of logits [B, K], a scalar."""

    @abstractmethod
    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Confidence of every subspace in the truth, summed over the batch, by which CGC orders subspaces."""

    @abstractmethod
    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        """Numeric columns [B] of the table of predictions; they are averaged over the slides of a patient."""

    @classmethod
    def mean_predictions(cls: type[SomeTask], tasks: Sequence[SomeTask], logits: Sequence[Tensor]) -> dict[str, Tensor]:
        """The columns of the table of predictions, averaged over models that were trained on different patients.

        Args:
            tasks: task of every model, which was fitted on its training patients.
            logits: logits of every model for the same samples.

        Shape:
            every tensor of ``logits`` [B, K].

        Returns:
            The columns [B].

        Raises:
            ValueError: the models predict different columns.
        """
        each = [task.predictions(one) for task, one in zip(tasks, logits, strict=True)]
        for columns in each:
            if columns.keys() != each[0].keys():
                raise ValueError(
                    f"models must predict the same to be averaged, got {list(each[0])} and {list(columns)}"
                )
        return {name: torch.stack([columns[name] for columns in each]).mean(0) for name in each[0]}

    def decisions(self, means: Mapping[str, Sequence[float]]) -> dict[str, list[Any]]:
        """Further columns of the table, derived from the patients' means; none by default."""
        return {}

    def explained(self, logits: Tensor) -> str:
        """The column of :meth:`predictions` that an explanation of one bag is about: by default the largest one."""
        columns = self.predictions(logits)
        return max(columns, key=lambda name: float(columns[name].mean()))

    @abstractmethod
    def metrics(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> dict[str, float]:
        """Metrics per patient of the logits [n, K] of n slides; needs the extra ``train``."""

    def headline_metric(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> float:
        """The first metric of ``headline`` alone; a kind may compute it quicker than all metrics."""
        return self.metrics(logits, labels, patients)[next(iter(self.headline))]

    @abstractmethod
    def to(self: SomeTask, device: torch.device | str) -> SomeTask:
        """The task with its weights and targets on another device."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain JSON values with the key ``"kind"``, from which :func:`task_from_state` rebuilds the task."""

    @classmethod
    @abstractmethod
    def from_state(cls: type[SomeTask], state: Mapping[str, Any]) -> SomeTask:
        """Rebuild a task from its state."""


@dataclass(frozen=True)
class TaskDefinition:
    """A task of a cohort before it is fitted: its kind, and where its labels are.

    Args:
        kind: class of the kind.
        columns: column of the clinical table for every key of the kind.
        options: options of the kind; those that are left out take their defaults.

    Raises:
        ValueError: a column is not named, an option is unknown, or :meth:`Task.check` refuses the definition.

    Example:
        >>> from disentangled_mil.tasks import Classification, TaskDefinition
        >>> definition = TaskDefinition(Classification, {"column": "msi"})
        >>> definition.read({"msi": "MSS", "age": "61"})
        {'label': 'MSS'}
    """

    kind: type[Task]
    columns: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(f"columns of kind {self.kind.kind!r}", self.columns, [column.key for column in self.kind.columns])
        for key in self.options:
            if key not in self.kind.options:
                known = [*self.columns, *self.kind.options]
                raise ValueError(
                    f"options of kind {self.kind.kind!r} must be among {', '.join(known)}, got {key!r}"
                    f"{did_you_mean(key, known)}"
                )
        self.kind.check(self.columns, self.options)
        object.__setattr__(self, "options", {**self.kind.options, **self.options})

    def named_values(self, column: str) -> list[str]:
        """The values of a column of the clinical table that the options name; see :meth:`Task.named_values`."""
        keys = [key for key, name in self.columns.items() if name == column]
        return [value for key in keys for value in self.kind.named_values(key, self.options)]

    def read(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        """Read the labels of one patient.

        Args:
            cells: values by column of the clinical table; None where a value is missing.

        Returns:
            The labels by their name; None where one is missing.

        Raises:
            ValueError: a value is no label; the message names the column.
        """
        labels = {}
        for key, name in self.kind.columns:
            column = self.columns[key]
            value = cells[column]
            try:
                labels[name] = None if value is None else self.kind.read(key, value, self.options)
            except ValueError as error:
                raise ValueError(f"column {column!r}: {error}") from error
        return labels

    def check_labels(self, labels: Labels) -> None:
        """Refuse labels that are all alike; see :meth:`Task.check_labels`."""
        with self._naming_columns():
            self.kind.check_labels(labels)

    def fit(self, labels: Labels) -> Task:
        """Fit the task on training patients.

        Args:
            labels: labels of the training patients.

        Returns:
            The task.

        Raises:
            ValueError: the labels do not allow it; the message names the columns.
        """
        with self._naming_columns():
            self.kind.check_labels(labels)
            return self.kind.fit_labels(labels, self.options)

    @contextmanager
    def _naming_columns(self) -> Iterator[None]:
        """Put the columns before an error."""
        try:
            yield
        except ValueError as error:
            columns = list(dict.fromkeys(self.columns.values()))
            raise ValueError(f"column{'s'[: len(columns) - 1]} {', '.join(map(repr, columns))}: {error}") from error


def counted(names: Iterable[Hashable]) -> str:
    """The number of patients of every class, for :meth:`Task.summary`.

    Args:
        names: class of every patient.

    Returns:
        The classes in order with their numbers.

    Example:
        >>> counted(["low", "high", "low"])
        'high 1, low 2'
    """
    counts: dict[str, int] = {}
    for name in names:
        counts[str(name)] = counts.get(str(name), 0) + 1
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
