"""How well a risk orders patients by their survival, one entry per patient."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from lifelines.utils import concordance_index
from torch import Tensor

from ._patients import agreed, array_of, index_of_patients, mean_of_patients


def survival_metrics(
    risk: npt.ArrayLike | Tensor,
    time: npt.ArrayLike | Tensor,
    *,
    event: npt.ArrayLike | Tensor,
    patients: Iterable[Any],
) -> dict[str, float]:
    """Agreement of risk and survival per patient; the slides of a patient are averaged first.

    ``c_index = (concordant + tied_risk / 2) / comparable_pairs`` (Harrell). A pair is comparable if one patient has the
    event before the other's time, or at the time at which the other is censored. Two events at one time are not
    comparable.

    Args:
        risk: risk of every slide, higher = worse.
        time: time of the last observation, in any unit.
        event: observations, 1 or True for an observed event, 0 or False for a censored time.
        patients: the patient of every slide.

    Shape:
        all [n].

    Returns:
        ``c_index`` from 0 to 1, NaN without a comparable pair, and the counts ``patients`` and ``events``. Numbers of
        pairs are ``comparable_pairs``, ``concordant``, ``discordant``, ``tied_risk`` and ``tied_time`` (comparable
        pairs of equal times).

    Raises:
        TypeError: times or events are dates or spans of time, which have a unit.
        ValueError: a length differs, there is no slide, a value is not finite, a patient is missing, an event is not
            0 or 1, or two slides of a patient differ in time or event.

    Source:
        Harrell, Lee and Mark, Statistics in Medicine 1996; the index itself is lifelines'.

    Differs from the source:
        One entry per patient where the released code counts slides.

    Example:
        >>> from disentangled_mil.metrics import survival_metrics
        >>> time, event, patients = [5.0, 5.0, 9.0], [1, 1, 0], ["a", "a", "b"]
        >>> metrics = survival_metrics([2.0, 4.0, 1.0], time, event=event, patients=patients)
        >>> metrics["c_index"], metrics["comparable_pairs"]
        (1.0, 1)
    """
    score, times, observed, names = _of_patients(risk, time, event, patients)
    pairs = _pairs(score, times, observed)
    return {
        "c_index": _concordance(score, times, observed),
        **pairs,
        "patients": len(names),
        "events": int(observed.sum()),
    }


def survival_concordance(
    risk: npt.ArrayLike | Tensor,
    time: npt.ArrayLike | Tensor,
    *,
    event: npt.ArrayLike | Tensor,
    patients: Iterable[Any],
) -> float:
    """The ``c_index`` of :func:`survival_metrics` alone, for the many draws of a bootstrap.

    Args:
        risk: risk of every slide, higher = worse.
        time: time of the last observation, in any unit.
        event: observations, 1 or True for an observed event, 0 or False for a censored time.
        patients: the patient of every slide.

    Shape:
        all [n].

    Returns:
        The index, from 0 to 1; NaN without a comparable pair.

    Raises:
        TypeError: as for :func:`survival_metrics`.
        ValueError: as for :func:`survival_metrics`.

    Source:
        Harrell, Lee and Mark, Statistics in Medicine 1996; the index itself is lifelines'.

    Example:
        >>> from disentangled_mil.metrics import survival_concordance
        >>> survival_concordance([3.0, 1.0], [5.0, 9.0], event=[1, 0], patients="ab")
        1.0
    """
    return _concordance(*_of_patients(risk, time, event, patients)[:3])


def _of_patients(
    risk: npt.ArrayLike | Tensor, time: npt.ArrayLike | Tensor, event: npt.ArrayLike | Tensor, patients: Iterable[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_], list[Any]]:
    """Risk, time and whether the event was observed [patients], and names of the patients, checked."""
    slides = array_of("risk", risk, 1)
    names, member = index_of_patients(patients, len(slides))
    score = mean_of_patients(slides[:, None], member)[:, 0]  # [patients]
    times = agreed("time", array_of("time", time, 1, length=len(slides)), names, member)
    events = array_of("event", event, 1, length=len(slides))
    for value in events:
        if value not in (0, 1):
            raise ValueError(f"event must be 0 (censored) or 1 (event observed), got {value:g}")
    return score, times, agreed("event", events, names, member) == 1, names


def _concordance(
    risk: npt.NDArray[np.float64], time: npt.NDArray[np.float64], observed: npt.NDArray[np.bool_]
) -> float:
    """Harrell's index; NaN without a comparable pair."""
    try:
        return float(concordance_index(time, -risk, observed))
    except ZeroDivisionError:  # lifelines: no admissible pairs
        return float("nan")


def _pairs(
    risk: npt.NDArray[np.float64], time: npt.NDArray[np.float64], observed: npt.NDArray[np.bool_]
) -> dict[str, int]:
    """Count pairs (i, j) in which i is known to have the event first."""
    tied_time = time[:, None] == time
    comparable = observed[:, None] & ((time[:, None] < time) | (tied_time & ~observed))
    counts = {
        "comparable_pairs": comparable,
        "concordant": comparable & (risk[:, None] > risk),
        "discordant": comparable & (risk[:, None] < risk),
        "tied_risk": comparable & (risk[:, None] == risk),
        "tied_time": comparable & tied_time,
    }
    return {name: int(pairs.sum()) for name, pairs in counts.items()}
