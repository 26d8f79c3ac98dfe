"""How good class probabilities are, one entry per patient."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score, multilabel_confusion_matrix, recall_score
from torch import Tensor

from ._patients import agreed, array_of, index_of_patients, mean_of_patients


def classification_metrics(
    probabilities: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, patients: Iterable[Any]
) -> dict[str, float]:
    """Quality of class probabilities per patient; the slides of a patient are averaged first.

    Macro averages run over the classes that some patient has. The AUC of a class tells it from all other classes.

    Args:
        probabilities: probability of every class, one row per slide.
        labels: index of the true class of every slide.
        patients: the patient of every slide.

    Shape:
        ``probabilities`` [n, K]; ``labels``, ``patients`` [n].

    Returns:
        ``auc``, ``accuracy``, ``sensitivity``, ``specificity`` and ``f1``, from 0 to 1; all but the accuracy are macro
        averages. ``patients`` and ``classes`` are counts. If all patients have one class, ``auc`` and ``specificity``
        are NaN.

    Raises:
        ValueError: a length differs, there is no slide, a value is not finite, a patient is missing, a label is no
            class, or two slides of a patient differ in their label.

    Source:
        scikit-learn.

    Differs from the source:
        One entry per patient where the released code counts slides.

    Example:
        >>> from disentangled_mil.metrics import classification_metrics
        >>> probabilities = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]
        >>> metrics = classification_metrics(probabilities, [0, 0, 1], ["a", "a", "b"])
        >>> metrics["auc"], metrics["accuracy"], metrics["patients"]
        (1.0, 1.0, 2)
    """
    scores, truth, names = _of_patients(probabilities, labels, patients)
    predicted = scores.argmax(1)
    present = np.unique(truth)
    macro: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0.0}
    specificity = np.nan
    if len(present) > 1:
        confusion = multilabel_confusion_matrix(truth, predicted, labels=present)  # [classes, 2, 2]
        specificity = np.mean(confusion[:, 0, 0] / confusion[:, 0].sum(1))
    return {
        "auc": _macro_auc(scores, truth),
        "accuracy": float(accuracy_score(truth, predicted)),
        "sensitivity": float(recall_score(truth, predicted, **macro)),
        "specificity": float(specificity),
        "f1": float(f1_score(truth, predicted, **macro)),
        "classes": len(present),
        "patients": len(names),
    }


def classification_auc(
    probabilities: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, patients: Iterable[Any]
) -> float:
    """The ``auc`` of :func:`classification_metrics` alone, for the many draws of a bootstrap.

    Args:
        probabilities: probability of every class, one row per slide.
        labels: index of the true class of every slide.
        patients: the patient of every slide.

    Shape:
        ``probabilities`` [n, K]; ``labels``, ``patients`` [n].

    Returns:
        The mean over the classes that some patient has, from 0 to 1; NaN if all patients have one class.

    Raises:
        ValueError: as for :func:`classification_metrics`.

    Source:
        The statistic of Mann and Whitney, with SciPy's ranks; it equals scikit-learn's ``roc_auc_score``.

    Example:
        >>> from disentangled_mil.metrics import classification_auc
        >>> classification_auc([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], [0, 0, 1], "abc")
        1.0
    """
    return _macro_auc(*_of_patients(probabilities, labels, patients)[:2])


def _of_patients(
    probabilities: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, patients: Iterable[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], list[Any]]:
    """Scores [patients, K], true classes [patients] and names of the patients, checked."""
    slides = array_of("probabilities", probabilities, 2)
    truths = array_of("labels", labels, 1, length=len(slides))
    outputs = slides.shape[1]
    for label in truths:
        if label not in range(outputs):
            raise ValueError(f"labels must be class indices from 0 to {outputs - 1}, got {label:g}")
    names, member = index_of_patients(patients, len(slides))
    return mean_of_patients(slides, member), agreed("labels", truths, names, member).astype(int), names


def _macro_auc(scores: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]) -> float:
    """The mean AUC of the classes that occur, each against all others: the rank sum of its patients, scaled."""
    present = np.unique(truth)
    if len(present) < 2:
        return float("nan")
    areas = []
    for k in present:
        own = truth == k
        pairs = own.sum() * (~own).sum()
        areas.append((rankdata(scores[:, k])[own].sum() - own.sum() * (own.sum() + 1) / 2) / pairs)
    return float(np.mean(areas))
