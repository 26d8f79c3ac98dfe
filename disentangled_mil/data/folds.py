"""Splits by patient, so that no patient is on both sides."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, train_test_split

from .._checks import check_count, check_type


class PatientSplit(NamedTuple):
    """Training patients and test patients.

    Args:
        train: training patients, in their original order.
        test: all other patients, in their original order.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]


def patient_folds(
    patients: Iterable[str], labels: Iterable[Hashable], *, folds: int = 3, seed: int = 0
) -> list[PatientSplit]:
    """Split patients for cross-validation, stratified: each is tested exactly once.

    Patients without the label or a modality take no part; they may be added to ``train`` of every split.

    Args:
        patients: identifiers, each once. The splits depend on their order: take that of the clinical table.
        labels: stratum per patient, see :meth:`~disentangled_mil.tasks.Task.strata`.
        folds: number of folds.
        seed: seed of the shuffle.

    Returns:
        One split per fold, which tests the patients of that fold.

    Raises:
        TypeError: ``folds`` is not an integer.
        ValueError: fewer than two folds, a patient twice, lengths differ, or a label has fewer patients than
            folds.

    Source:
        The paper uses three folds by patient; the split is that of scikit-learn's
        ``StratifiedKFold(folds, shuffle=True, random_state=seed)``.

    Example:
        >>> from disentangled_mil.data.folds import patient_folds
        >>> splits = patient_folds("abcdef", [0, 0, 0, 1, 1, 1])
        >>> sorted(patient for split in splits for patient in split.test)
        ['a', 'b', 'c', 'd', 'e', 'f']
    """
    check_count("folds", folds, minimum=2)
    check_count("seed", seed, minimum=0)
    names, strata = _check_patients(patients, labels, folds, f"one patient in each of the {folds} folds")
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(names, strata)
    return [_split(names, test) for _, test in splits]


def inner_split(
    patients: Iterable[str], labels: Iterable[Hashable], *, fraction: float = 0.2, seed: int = 0
) -> PatientSplit:
    """Set some training patients aside, stratified, e.g. for early stopping inside a fold.

    Args:
        patients: identifiers of the training patients, each once.
        labels: stratum per patient, see :meth:`~disentangled_mil.tasks.Task.strata`.
        fraction: share of the patients to set aside, between 0 and 1, rounded up.
        seed: seed of the shuffle.

    Returns:
        The remaining patients (``train``) and those set aside (``test``).

    Raises:
        ValueError: ``fraction`` is not between 0 and 1 or leaves one side with fewer patients than labels, a
            patient twice, lengths differ, or a label with a single patient.

    Source:
        ``sklearn.model_selection.train_test_split(..., stratify=labels)``.

    Example:
        >>> from disentangled_mil.data.folds import inner_split
        >>> split = inner_split(map(str, range(20)), [0, 1] * 10)
        >>> len(split.train), len(split.test)
        (16, 4)
    """
    check_type("fraction", fraction, Real, "a number")
    check_count("seed", seed, minimum=0)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    names, strata = _check_patients(patients, labels, 2, "one patient on each side")
    aside, classes = int(np.ceil(fraction * len(names))), len(set(strata))
    if min(aside, len(names) - aside) < classes:
        raise ValueError(
            f"fraction must leave at least one patient per label ({classes}) on each side, got {fraction}: "
            f"{len(names) - aside} and {aside} patients"
        )
    _, test = train_test_split(np.arange(len(names)), test_size=aside, stratify=strata, random_state=seed)
    return _split(names, test)


def pool_rare(strata: Sequence[str], minimum: int) -> list[str]:
    """Put strata with too few members into one, so that patients can still be split by stratum.

    Args:
        strata: stratum of every patient.
        minimum: least number of members of a stratum.

    Returns:
        The strata. Rare ones are ``"rare"``, or the most common stratum if even together they are too few.

    Example:
        >>> from disentangled_mil.data.folds import pool_rare
        >>> pool_rare(["G2", "G2", "G3", "G4"], 2)
        ['G2', 'G2', 'rare', 'rare']
        >>> pool_rare(["G2", "G2", "G3"], 2)
        ['G2', 'G2', 'G2']
    """
    counts = Counter(strata)
    rare = sum(count for count in counts.values() if count < minimum)
    pool = "rare" if rare >= minimum else counts.most_common(1)[0][0]
    return [stratum if counts[stratum] >= minimum else pool for stratum in strata]


def _check_patients(
    patients: Iterable[str], labels: Iterable[Hashable], minimum: int, purpose: str
) -> tuple[list[str], list[str]]:
    """Patients, and their labels as text: names, numbers and booleans alike."""
    check_type("patients", patients, Iterable, "several patients")
    check_type("labels", labels, Iterable, "several labels")
    names, given = list(patients), list(labels)
    if len(names) != len(given):
        raise ValueError(f"labels must have one entry per patient = {len(names)}, got {len(given)}")
    for name, label in zip(names, given, strict=True):
        if pd.isna(label):
            raise ValueError(f"every patient must have a label, got {label} for {name!r}")
    strata = list(map(str, given))
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise ValueError(f"patients must be different, got {name!r} {times} times")
    counts = Counter(strata)
    if not counts:
        raise ValueError("patients must not be empty")
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < minimum:
        raise ValueError(
            f"every label must have at least {minimum} patients ({purpose}), got {counts[rarest]} with {rarest!r}; "
            "merge rare labels, leave their patients out, or use fewer folds"
        )
    return names, strata


def _split(names: Sequence[str], test: Iterable[int]) -> PatientSplit:
    """The split that tests the patients at the given places."""
    tested = set(map(int, test))
    return PatientSplit(
        tuple(name for place, name in enumerate(names) if place not in tested),
        tuple(name for place, name in enumerate(names) if place in tested),
    )
