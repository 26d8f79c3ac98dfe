"""The scale of an expression table, recognized from its values.

The rules were tried on 90 glioblastomas in TPM (20,531 genes), with 10 to 90 patients. The tables were whole, or
random parts of 20 or more genes of 60 published sets. In TPM the largest value of a typical patient was 63 or more in
98 % of the trials. After log2, natural or decimal logarithm it was 13 or less in 98 %, and the coefficient of
variation of a typical gene was below 0.4.
"""

from typing import Any, NamedTuple

import numpy as np

SCALES = ("counts", "linear", "log", "centered", "z-scores", "fractions", "unknown")

_LEAST_GENES, _LEAST_PATIENTS = 20, 5
# log2 of the largest counts is about 25. One patient of a logarithmic table may hold a larger value by mistake.
_LARGEST_LOG = 25.0
_LARGEST_VARIATION = 0.5
# Standard deviations of the middle half of the genes in z-scores, which were computed from more patients. In three
# published sets they are 0.93 to 1.23. Those of 5 patients vary by a third.
_LEAST_SD, _LARGEST_SD, _SD_OF_ONE = 0.8, 1.35, 0.7

Array = np.ndarray[Any, Any]


class Scale(NamedTuple):
    """The scale of a table.

    Attributes:
        name: one of :data:`SCALES`; ``"linear"`` is TPM, FPKM or another linear scale.
        reason: observation from which it follows.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """The scale in words, with its reason."""
        words = {
            "linear": "linear values, such as TPM or FPKM",
            "log": "log-transformed values",
            "centered": "centered values, such as log-ratios",
        }
        return f"{words.get(self.name, self.name)} ({self.reason})"


def recognize_scale(values: Array) -> Scale:
    """Recognize counts, linear values, their logarithm, centered values such as log-ratios, z-scores and fractions.

    Args:
        values: expression, finite.

    Shape:
        ``values`` [n, G].

    Returns:
        The scale; ``"unknown"`` for fewer than 20 genes or 5 patients, and where the signs contradict each other.

    Example:
        >>> counts = np.random.default_rng(0).poisson(np.geomspace(1, 5000, 40), (10, 40))
        >>> recognize_scale(counts).name, recognize_scale(np.log2(counts + 1)).name
        ('counts', 'log')
    """
    patients, genes = values.shape
    if genes < _LEAST_GENES or patients < _LEAST_PATIENTS:
        return Scale(
            "unknown",
            f"{genes} genes of {patients} patients are too few to tell; {_LEAST_GENES} of {_LEAST_PATIENTS} would do",
        )
    mean, std = values.mean(axis=0), values.std(axis=0)
    negative = float((values < 0).mean())
    if negative > 0:
        center, spread = float(np.median(np.abs(mean))), float(np.median(std))
        noted = f"{negative:.0%} of the values are negative, and a typical gene has mean {center:.2g}, sd {spread:.2g}"
        if center >= 0.5 or negative <= 0.2:
            return Scale("log", noted)
        low, high = np.quantile(std, (0.25, 0.75))
        noted += f"; half of the genes have an sd from {low:.2g} to {high:.2g}"
        margin = _SD_OF_ONE / patients**0.5
        alike = _LEAST_SD - margin < low and high < _LARGEST_SD + margin
        return Scale("z-scores" if alike else "centered", noted)
    top = float(np.median(values.max(axis=1)))
    noted = f"the largest value of a typical patient is {top:.4g}"
    if values.max() <= 1:
        return Scale("fractions", "all values lie between 0 and 1")
    if top > _LARGEST_LOG:
        whole = bool((values == np.round(values)).all())
        return Scale("counts" if whole else "linear", noted + (", and all are whole numbers" if whole else ""))
    expressed = mean > 0.1 * mean.max()
    variation = float(np.median(std[expressed] / mean[expressed]))
    noted += f", and a typical gene varies by {variation:.0%}"
    return Scale("log" if variation < _LARGEST_VARIATION else "unknown", noted)
