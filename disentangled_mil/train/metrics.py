"""How good predictions are, one entry per patient."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines.utils import concordance_index
from sklearn.metrics import accuracy_score, f1_score, multilabel_confusion_matrix, recall_score, roc_auc_score
from torch import Tensor

from .._checks import as_numbers

__all__ = ["classification_metrics", "survival_metrics"]


def classification_metrics(
    probabilities: npt.ArrayLike | Tensor, labels: npt.ArrayLike | Tensor, patients: Iterable[Any]
) -> dict[str, float]:
    """Quality of class probabilities; the slides of a patient are averaged first.

    Macro averages run over the classes that some patient has: of the others nothing can be known. The AUC of
    a class is that of telling it from the rest.

    Args:
        probabilities: probability of every class, one row per slide.
        labels: index of the true class, one per slide.
        patients: the patient of every slide.

    Shape:
        ``probabilities`` [n, K]; ``labels``, ``patients`` [n].

    Returns:
        ``auc``, ``accuracy``, ``sensitivity``, ``specificity`` and ``f1``, from 0 to 1, all but the accuracy
        macro averages; ``patients`` and ``classes``, how many there were. With patients of a single class,
        ``auc`` and ``specificity`` have nothing to compare and are NaN (``classes`` is 1).

    Raises:
        ValueError: a length differs, there is no slide, a value is not finite, a patient is missing, a label is no
            class, or two slides of a patient differ in their label.

    Source:
        scikit-learn.

    Differs from the source:
        One entry per patient where the released code counts slides.

    Example:
        >>> from disentangled_mil.train.metrics import classification_metrics
        >>> probabilities = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]
        >>> metrics = classification_metrics(probabilities, [0, 0, 1], ["a", "a", "b"])
        >>> metrics["auc"], metrics["accuracy"], metrics["patients"]
        (1.0, 1.0, 2)
    """
    slides = _array("probabilities", probabilities, 2)
    truths = _array("labels", labels, 1, length=len(slides))
    outputs = slides.shape[1]
    for label in truths:
        if label not in range(outputs):
            raise ValueError(f"labels must be class indices from 0 to {outputs - 1}, got {label:g}")
    names, member = _patients(patients, len(slides))
    scores = _mean(slides, member)  # [patients, K]
    truth = _agreed("labels", truths, names, member).astype(int)  # [patients]
    predicted = scores.argmax(1)
    present = np.unique(truth)
    macro: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0.0}
    auc = specificity = np.nan
    if len(present) > 1:
        auc = np.mean([roc_auc_score(truth == k, scores[:, k]) for k in present])
        confusion = multilabel_confusion_matrix(truth, predicted, labels=present)  # [classes, 2, 2]
        specificity = np.mean(confusion[:, 0, 0] / confusion[:, 0].sum(1))
    return {
        "auc": float(auc),
        "accuracy": float(accuracy_score(truth, predicted)),
        "sensitivity": float(recall_score(truth, predicted, **macro)),
        "specificity": float(specificity),
        "f1": float(f1_score(truth, predicted, **macro)),
        "classes": len(present),
        "patients": len(names),
    }


def survival_metrics(
    risk: npt.ArrayLike | Tensor,
    time: npt.ArrayLike | Tensor,
    *,
    event: npt.ArrayLike | Tensor,
    patients: Iterable[Any],
) -> dict[str, float]:
    """How well a risk orders patients by their survival; the risks of a patient's slides are averaged first.

    ``c_index = (concordant + tied_risk / 2) / comparable_pairs`` (Harrell). A pair is comparable if the one
    who died did so before the other's time, or at the time at which the other was censored; two deaths at one
    time are not.

    Args:
        risk: risk of every slide, higher = worse.
        time: time of the last observation, in any unit.
        event: 1 or True where the death was observed, 0 or False where the time is censored.
        patients: the patient of every slide.

    Shape:
        all [n].

    Returns:
        ``c_index`` from 0 to 1, NaN without a comparable pair; the numbers of pairs it is made of,
        ``comparable_pairs``, ``concordant``, ``discordant``, ``tied_risk``, and of those comparable
        ``tied_time``; ``patients`` and ``events``.

    Raises:
        TypeError: times or events are dates or spans of time, which have a unit.
        ValueError: a length differs, there is no slide, a value is not finite, a patient is missing, an event is not
            0 or 1, or two slides of a patient differ in time or event.

    Source:
        Harrell, Lee and Mark, Statistics in Medicine 1996; the index itself is lifelines'.

    Differs from the source:
        One entry per patient where the released code counts slides.

    Example:
        >>> from disentangled_mil.train.metrics import survival_metrics
        >>> time, event, patients = [5.0, 5.0, 9.0], [1, 1, 0], ["a", "a", "b"]
        >>> metrics = survival_metrics([2.0, 4.0, 1.0], time, event=event, patients=patients)
        >>> metrics["c_index"], metrics["comparable_pairs"]
        (1.0, 1)
    """
    slides = _array("risk", risk, 1)
    names, member = _patients(patients, len(slides))
    score = _mean(slides[:, None], member)[:, 0]  # [patients]
    times = _agreed("time", _array("time", time, 1, length=len(slides)), names, member)
    events = _array("event", event, 1, length=len(slides))
    for value in events:
        if value not in (0, 1):
            raise ValueError(f"event must be 0 (censored) or 1 (death observed), got {value:g}")
    died = _agreed("event", events, names, member) == 1
    pairs = _pairs(score, times, died)
    comparable = pairs["comparable_pairs"] > 0
    c_index = float(concordance_index(times, -score, died)) if comparable else np.nan
    return {"c_index": c_index, **pairs, "patients": len(names), "events": int(died.sum())}


def _pairs(risk: npt.NDArray[np.float64], time: npt.NDArray[np.float64], died: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Count pairs (i, j) of which i is known to have died first."""
    tied_time = time[:, None] == time
    comparable = died[:, None] & ((time[:, None] < time) | (tied_time & ~died))
    counts = {
        "comparable_pairs": comparable,
        "concordant": comparable & (risk[:, None] > risk),
        "discordant": comparable & (risk[:, None] < risk),
        "tied_risk": comparable & (risk[:, None] == risk),
        "tied_time": comparable & tied_time,
    }
    return {name: int(pairs.sum()) for name, pairs in counts.items()}


def _array(
    name: str, values: npt.ArrayLike | Tensor, dimensions: int, *, length: int | None = None
) -> npt.NDArray[np.float64]:
    """Finite numbers in float64."""
    numbers = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    array = as_numbers(name, np.asarray(numbers))
    if array.ndim != dimensions or len(array) == 0 or (length is not None and len(array) != length):
        shape = "[n]" if dimensions == 1 else "[n, K]"
        requirement = f"n = {length}" if length is not None else "n >= 1"
        raise ValueError(f"{name} must have shape {shape} with {requirement}, got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _patients(patients: Iterable[Any], length: int) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct patients in order of appearance, and for each slide the index of its patient."""
    # Tensors are told apart by identity: equal ones count as one patient only as plain numbers.
    names = [name.tolist() if isinstance(name, (Tensor, np.ndarray, np.generic)) else name for name in patients]
    if len(names) != length:
        raise ValueError(f"patients must have one entry for each of the {length} slides, got {len(names)}")
    for row, name in enumerate(names):
        if isinstance(name, list):
            raise ValueError(f"patients must have shape [n], got {[length, *np.shape(name)]}")
        if pd.isna(name):
            raise ValueError(f"patients must name the patient of every slide, got {name!r} at position {row}")
    index = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return list(index), np.array([index[name] for name in names])


def _mean(rows: npt.NDArray[np.float64], member: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean row of every patient [n, K] -> [patients, K], rounded once: equal scores stay equal, in any order."""
    columns = (rows[member == patient].T for patient in range(member.max() + 1))
    return np.array([[statistics.mean(map(float, column)) for column in patient] for patient in columns])


def _agreed(
    name: str, values: npt.NDArray[np.float64], patients: list[Any], member: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The one value of every patient [n] -> [patients]."""
    first = np.unique(member, return_index=True)[1]
    for row in np.flatnonzero(values != values[first][member])[:1]:
        patient = patients[member[row]]
        raise ValueError(
            f"{name} must be one value per patient, got {values[first][member[row]]:g} and {values[row]:g} "
            f"for {patient!r}"
        )
    return values[first]
