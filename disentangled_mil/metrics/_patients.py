"""From slides to patients: checked arrays, and one value per patient."""

import statistics
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from .._checks import as_numbers, check_type


def array_of(
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


def index_of_patients(patients: Iterable[Any], length: int) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct patients in order of appearance, and for each slide the index of its patient."""
    # Tensors are told apart by identity: equal ones count as one patient only as plain numbers.
    check_type("patients", patients, Iterable, "several patients")
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


def mean_of_patients(rows: npt.NDArray[np.float64], member: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean row of every patient [n, K] -> [patients, K], rounded once: equal scores stay equal, in any order."""
    if len(rows) == member.max() + 1:
        return rows  # one slide each, and patients are counted in order of appearance
    ends = np.bincount(member).cumsum()[:-1]
    parts = np.split(rows[np.argsort(member, kind="stable")], ends)
    return np.array([[_mean(tuple(column)) for column in part.T.tolist()] for part in parts])


# An exact mean takes long, and a bootstrap asks for those of the same patients a thousand times.
@lru_cache(maxsize=1 << 16)
def _mean(values: tuple[float, ...]) -> float:
    return statistics.mean(values)


def agreed(
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
