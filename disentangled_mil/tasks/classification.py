"""Classification: one class out of several."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from .._checks import check_batch, check_flag, check_integers, check_mapping, check_shape, check_type, check_values
from .._precision import widened
from .._schema import check_state
from .targets import Target
from .task import Column, Labels, Task, counted


@final
class Classification(Task):
    """One class out of several: diagnosis, grade, mutation status.

    ``loss = mean_i w(y_i) * (-log softmax(logits_i)[y_i])``.

    Args:
        classes: names of the classes, in the order of the logits.
        class_weight: weight w of each class in the loss; by default 1.

    Shape:
        ``class_weight`` [K].

    Raises:
        TypeError: ``classes`` is one string, or holds a value that is no string.
        ValueError: there are fewer than two classes, a class comes twice, or a weight is negative or not finite.

    Source:
        Cross-entropy; the confidence is that of CGC (eq. 6 of the paper).

    Differs from the source:
        The weighted loss is divided by the number of samples, not by the sum of their weights. With the latter, the
        weight cancels in a batch of one, and gradients accumulated over small batches depend on the batches.

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

    kind: ClassVar[str] = "classification"
    link: ClassVar[str] = "softmax"
    columns: ClassVar[tuple[Column, ...]] = (Column("column", "label"),)
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({"classes": (), "balanced": True})
    headline: ClassVar[Mapping[str, str]] = MappingProxyType({"auc": "AUC", "accuracy": "accuracy"})
    titles: ClassVar[Mapping[str, str]] = MappingProxyType({"f1": "F1"})
    counts: ClassVar[frozenset[str]] = frozenset({"patients", "classes"})
    undefined: ClassVar[str] = "nan: all patients of a test set have one class, so there is nothing to tell apart"

    def __init__(self, classes: Iterable[str], *, class_weight: Tensor | None = None) -> None:
        self.classes = _strings("classes", classes)
        if len(self.classes) < 2:
            raise ValueError(f"classes must name at least two classes, got {list(self.classes)}")
        if not all(map(str.strip, self.classes)):
            raise ValueError(f"classes must not be empty, because an empty cell has no value, got {self.classes}")
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
        """Fit classes and weights on the labels of training patients.

        Args:
            labels: label of every training patient.
            classes: classes in order; by default the sorted ones of ``labels``.
            balanced: flag that gives class k the weight ``n / (K * n_k)``. Then all classes count the same, and the
                mean weight of a training patient is 1.

        Returns:
            The task.

        Raises:
            TypeError: ``labels`` or ``classes`` is one string, or holds a value that is no string, e.g. a missing one.
            ValueError: a label is no class, or a class that is to be balanced has no label.

        Example:
            >>> from disentangled_mil import Classification
            >>> Classification.fit(["2", "4", "4"], classes=["2", "3", "4"], balanced=False).outputs
            3
        """
        check_flag("balanced", balanced)
        names = _strings("labels", labels)
        task = cls(sorted(set(names)) if classes is None else classes)
        counts = torch.bincount(task.target(names), minlength=task.outputs)  # [K]
        if not balanced:
            return task
        for name, count in zip(task.classes, counts.tolist(), strict=True):
            if count == 0:
                raise ValueError(f"labels must hold every class to balance them, got no {name!r}")
        return cls(task.classes, class_weight=len(names) / (task.outputs * counts))

    @classmethod
    def check(cls, columns: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Check the classes, if there are any."""
        if options.get("classes"):
            cls(options["classes"])

    @classmethod
    def named_values(cls, key: str, options: Mapping[str, Any]) -> Sequence[str]:
        """The classes of the definition."""
        return tuple(options["classes"])

    @classmethod
    def check_labels(cls, labels: Labels) -> None:
        """Refuse labels of a single class."""
        if len(set(labels["label"])) < 2:
            raise ValueError(
                f"labels must hold at least two classes, got only {labels['label'][0]!r}; name another column"
            )

    @classmethod
    def read(cls, key: str, value: Any, options: Mapping[str, Any]) -> Any:
        """Read a class; it must be among the classes of the definition, if there are any."""
        classes = options["classes"]
        if classes and value not in classes:
            raise ValueError(f"the class must be among {', '.join(map(repr, classes))}, got {value!r}")
        return value

    @classmethod
    def strata(cls, labels: Labels) -> list[Hashable]:
        """The class of every patient."""
        return list(labels["label"])

    @classmethod
    def summary(cls, labels: Labels) -> str:
        """The number of patients per class."""
        return counted(labels["label"])

    @classmethod
    def chance(cls, labels: Labels) -> Mapping[str, float]:
        """AUC 0.5; the accuracy of always naming the most frequent class; macro averages of any guess."""
        counts = Counter(labels["label"])
        share = 1 / len(counts)
        accuracy = max(counts.values()) / len(labels["label"])
        return {"auc": 0.5, "accuracy": accuracy, "sensitivity": share, "specificity": 1 - share}

    @classmethod
    def fit_labels(cls, labels: Labels, options: Mapping[str, Any]) -> "Classification":
        """Fit classes and weights on the labels of training patients."""
        return cls.fit(labels["label"], options["classes"] or None, options["balanced"])

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return len(self.classes)

    def target(self, labels: Iterable[str]) -> Tensor:
        """Class indices of labels.

        Args:
            labels: label of every sample.

        Returns:
            The indices [B], int64.

        Raises:
            TypeError: ``labels`` is one string, or holds a value that is no string, e.g. a missing one.
            ValueError: a label is no class.
        """
        index = {name: k for k, name in enumerate(self.classes)}
        names = _strings("labels", labels)
        for row, name in enumerate(names):
            if name not in index:
                raise ValueError(f"labels must be among {list(self.classes)}, got {name!r} at position {row}")
        return torch.tensor([index[name] for name in names], dtype=torch.int64, device=self._device)

    def target_of_labels(self, labels: Labels) -> Tensor:
        """Class indices [B] of labels."""
        return self.target(labels["label"])

    def loss(self, logits: Tensor, target: Target) -> Tensor:
        """Mean weighted cross-entropy.

        Args:
            logits: class logits.
            target: class indices.

        Shape:
            ``logits`` [B, K], ``target`` [B].

        Returns:
            A scalar in at least float32.

        Raises:
            TypeError: ``target`` is not an integer tensor.
            ValueError: a shape differs, the batch is empty, or, on the CPU, an index is of no class. On a GPU values
                are not read, and such an index fails the kernel.
        """
        sizes = check_shape("logits", logits, "B K", {"K": self.outputs})
        target = _class_indices(target, sizes)
        check_batch("logits", logits)
        logits = widened(logits)
        # F.cross_entropy would count ignore_index as a loss of 0.
        loss = -logits.log_softmax(-1).gather(1, target[:, None])[:, 0]  # [B]
        return (loss if self.class_weight is None else self.class_weight.to(logits.dtype)[target] * loss).mean()

    @torch.no_grad()
    def confidence(self, subspace_logits: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Confidence of every subspace in the truth: ``softmax(logits)[target]`` summed over the batch.

        Args:
            subspace_logits: class logits of every subspace.
            target: class indices.

        Shape:
            every tensor of ``subspace_logits`` [B, K]; ``target`` [B].

        Returns:
            A scalar per subspace.
        """
        check_mapping("subspace_logits", subspace_logits)
        scores = {}
        for subspace, logits in subspace_logits.items():
            sizes = check_shape(f"subspace_logits[{subspace!r}]", logits, "B K", {"K": self.outputs})
            target = _class_indices(target, sizes)
            scores[subspace] = self.probabilities(logits).gather(1, target[:, None]).sum()
        return scores

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class [B, K]."""
        return widened(logits).softmax(-1)

    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        """The columns ``probability_CLASS``."""
        check_shape("logits", logits, "B K", {"K": len(self.classes)})
        columns = self.probabilities(logits).unbind(-1)
        return {f"probability_{name}": column for name, column in zip(self.classes, columns, strict=True)}

    def decisions(self, means: Mapping[str, Sequence[float]]) -> dict[str, list[Any]]:
        """The column ``predicted``: the class of the largest mean probability."""
        rows = zip(*(means[f"probability_{name}"] for name in self.classes), strict=True)
        return {"predicted": [self.classes[row.index(max(row))] for row in rows]}

    def metrics(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> dict[str, float]:
        """AUC, accuracy and others, see :func:`disentangled_mil.metrics.classification_metrics`."""
        from ..metrics import classification_metrics

        return classification_metrics(self.probabilities(logits), self.target_of_labels(labels), patients)

    def headline_metric(self, logits: Tensor, labels: Labels, patients: Sequence[Any]) -> float:
        """The AUC, see :func:`disentangled_mil.metrics.classification_auc`."""
        from ..metrics import classification_auc

        return classification_auc(self.probabilities(logits), self.target_of_labels(labels), patients)

    def to(self, device: torch.device | str) -> "Classification":
        """The task with its weights and targets on another device."""
        task = copy(self)
        task.class_weight = None if self.class_weight is None else self.class_weight.to(device)
        task._device = torch.device(device)
        return task

    def state(self) -> dict[str, Any]:
        """Everything needed to rebuild the task with :func:`task_from_state`, as plain JSON values."""
        weight = None if self.class_weight is None else self.class_weight.tolist()
        return {"kind": self.kind, "classes": list(self.classes), "class_weight": weight}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Classification":
        """Rebuild the task from its state."""
        check_state(state, {"kind": str, "classes": list[str], "class_weight": list[float] | None})
        weight = state["class_weight"]
        return cls(state["classes"], class_weight=None if weight is None else torch.tensor(weight))

    def __repr__(self) -> str:
        weight = None if self.class_weight is None else [round(w, 3) for w in self.class_weight.tolist()]
        return f"Classification(classes={self.classes}, class_weight={weight})"


def _class_indices(target: Target, sizes: Mapping[str, int]) -> Tensor:
    """A target of :class:`Classification`."""
    check_shape("target", target, "B", sizes)  # type: ignore[arg-type]  # refuses what is no tensor
    check_integers("target", cast(Tensor, target))
    indices = cast(Tensor, target).long()
    last = sizes["K"] - 1
    check_values("target", indices, f"be a class index from 0 to {last}", lambda k: (k >= 0) & (k <= last))
    return indices


def _strings(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """A sequence of names; one string is refused, because its characters are hardly meant."""
    if isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of strings, got the string {values!r}")
    check_type(name, values, Iterable, "a sequence of strings")
    given = tuple(values)
    for row, value in enumerate(given):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of strings, got {value!r} at position {row}")
    return tuple(map(str, given))
