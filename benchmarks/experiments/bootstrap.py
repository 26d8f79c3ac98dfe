"""Metrics of a row over all seeds and folds, as they are and on patients drawn anew.

A metric is computed in every fold of every seed and averaged. A patient who is drawn twice counts twice in every seed,
and in every row, so that rows can be compared. The spread covers the choice of patients, not the randomness of
training, which the seeds average out.

Pairs are compared once per table and then only weighted. So a thousand draws of a table of 200 patients take 12 times
(AUC) to 19 times (C-index) less time than calls of ``classification_auc`` and ``survival_concordance``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from disentangled_mil.metrics import bootstrap_patients

Array: TypeAlias = NDArray[np.float64]
RESAMPLES = 1000


class Pairs(NamedTuple):
    """A metric as a share of pairs of patients: ``(w A w) / (w B w)`` with the weights w of the patients."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    counted: Array
    all: Array

    def value(self, weights: Array) -> float:
        """The metric with weights of the patients; NaN without a pair."""
        left, right = weights[self.rows], weights[self.columns]
        total = left @ self.all @ right
        return float(left @ self.counted @ right / total) if total > 0 else float("nan")


def bootstrapped(metric: str, tables: Sequence[pd.DataFrame]) -> Array:
    """A metric averaged over the tables of all seeds and folds: on all patients, then on every draw [1 + R].

    Args:
        metric: ``"auc"`` or ``"c_index"``.
        tables: predictions and labels, indexed by patient.
    """
    strata: dict[str, str] = {}
    for table in tables:
        strata |= dict(zip(table.index, map(str, table["label" if "label" in table else "event"]), strict=True))
    patients = sorted(strata)
    place = {patient: k for k, patient in enumerate(patients)}
    folds = [(np.array([place[p] for p in table.index]), _METRICS[metric](table)) for table in tables]

    def value(rows: NDArray[np.int64]) -> float:
        weights = np.bincount(rows, minlength=len(patients)).astype(float)
        each = [np.mean([pairs.value(weights[here]) for pairs in parts]) for here, parts in folds]
        return float(np.mean([v for v in each if v == v])) if any(v == v for v in each) else float("nan")

    return bootstrap_patients(value, [strata[patient] for patient in patients], resamples=RESAMPLES)


def _auc(table: pd.DataFrame) -> list[Pairs]:
    """One class against the rest, for every class; their mean is the macro average."""
    truth, parts = table["label"].to_numpy(), []
    for label in sorted(set(truth)):
        score = table[f"probability_{label}"].to_numpy()
        inside, outside = np.flatnonzero(truth == label), np.flatnonzero(truth != label)
        counted = _ordered(score[inside, None], score[outside])
        parts.append(Pairs(inside, outside, counted, np.ones_like(counted)))
    return parts


def _c_index(table: pd.DataFrame) -> list[Pairs]:
    """Harrell's index, with the pairs of :func:`disentangled_mil.metrics.survival_metrics`."""
    risk, time = table["risk"].to_numpy(), table["time"].to_numpy()
    event = table["event"].to_numpy(bool)
    comparable = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    everyone = np.arange(len(table))
    return [Pairs(everyone, everyone, comparable * _ordered(risk[:, None], risk), comparable.astype(float))]


def _ordered(above: Array, below: Array) -> Array:
    """1 where a pair is in the right order, 0.5 where it is tied."""
    shares: Array = (above > below) + 0.5 * (above == below)
    return shares


_METRICS: Mapping[str, Any] = {"auc": _auc, "c_index": _c_index}
