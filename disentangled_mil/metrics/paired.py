"""Intervals over patients: of one model's metric, and of the difference of two models on the same patients.

Patients are drawn anew, with replacement and the same for all models. So what makes a set of patients easy or hard
cancels from the difference.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._checks import as_numbers, check_count, check_interval

Rows: TypeAlias = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """A metric with its interval over patients.

    Attributes:
        value: metric on all patients.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The difference of two models on the same patients.

    Attributes:
        difference: metric of the first model minus that of the second.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    difference: float
    low: float
    high: float


def bootstrap_patients(
    metric: Callable[[Rows], float], strata: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> npt.NDArray[np.float64]:
    """A metric on all patients, and on patients drawn anew within their strata.

    Two calls with the same strata and seed draw the same patients.

    Args:
        metric: function from indices of patients to the metric; an index may come several times, as several patients.
        strata: stratum of every patient. Each keeps its number of patients, so a class is never lost.
        resamples: number of draws R.
        seed: seed of the draws.

    Shape:
        ``strata`` [n].

    Returns:
        The metric on all patients, then on every draw [1 + R].

    Raises:
        TypeError: a count is not an integer.
        ValueError: there is no patient or no draw.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Example:
        >>> import numpy as np
        >>> from disentangled_mil.metrics import bootstrap_patients
        >>> ages = np.array([40.0, 50.0, 60.0])
        >>> bootstrap_patients(lambda rows: ages[rows].mean(), "aab", resamples=2)
        array([50.        , 53.33333333, 50.        ])
    """
    check_count("resamples", resamples)
    if len(strata) == 0:
        raise ValueError("strata must have one entry per patient, got none")
    generator = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(row)
    values = [metric(np.arange(len(strata)))]
    for _ in range(resamples):
        drawn = [generator.choice(np.array(rows), len(rows)) for rows in members.values()]
        values.append(metric(np.concatenate(drawn)))
    return np.array(values, dtype=np.float64)


def percentile_interval(draws: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """A metric with its percentile interval over patients.

    Args:
        draws: metric on all patients and on every draw, from :func:`bootstrap_patients`.
        confidence: share of the draws that the interval holds.

    Shape:
        ``draws`` [1 + R].

    Returns:
        The metric and the interval. Draws without a value are left out; without any, the ends are NaN.

    Raises:
        ValueError: there is no draw, or ``confidence`` is not between 0 and 1.

    Source:
        Percentile bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Example:
        >>> import numpy as np
        >>> from disentangled_mil.metrics import bootstrap_patients, percentile_interval
        >>> right = np.array([1, 1, 1, 0])
        >>> percentile_interval(bootstrap_patients(lambda rows: right[rows].mean(), "aaaa"))
        Interval(value=0.75, low=0.25, high=1.0)
    """
    check_interval("confidence", confidence, 0, 1, open_low=True)
    values = as_numbers("draws", np.asarray(draws))
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"draws must have shape [1 + R] with R >= 1, got {list(values.shape)}")
    drawn = values[1:][np.isfinite(values[1:])]
    if len(drawn) == 0:
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values[0]), float(low), float(high))


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = 0.95) -> PairedDifference:
    """The difference of two models' metrics on the same patients, with a percentile interval over patients.

    Args:
        first: metric of the first model on all patients and on every draw, from :func:`bootstrap_patients`.
        second: metric of the second model on the same patients.
        confidence: share of the draws that the interval holds.

    Shape:
        ``first``, ``second`` [1 + R].

    Returns:
        The difference. It is NaN where a metric has no value; draws without a value are left out.

    Raises:
        ValueError: the shapes differ, there is no draw, or ``confidence`` is not between 0 and 1.

    Source:
        Percentile bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Example:
        >>> import numpy as np
        >>> from disentangled_mil.metrics import bootstrap_patients, paired_difference
        >>> right = np.array([[1, 1, 1, 0], [0, 1, 0, 0]])  # two models, four patients
        >>> accuracies = [bootstrap_patients(lambda rows: model[rows].mean(), "aabb") for model in right]
        >>> paired_difference(*accuracies)
        PairedDifference(difference=0.5, low=0.0, high=1.0)
    """
    check_interval("confidence", confidence, 0, 1, open_low=True)
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or len(one) < 2 or one.shape != two.shape:
        raise ValueError(
            f"first and second must have one shape [1 + R] with R >= 1, got {list(one.shape)} and {list(two.shape)}"
        )
    return PairedDifference(*percentile_interval(one - two, confidence=confidence))
