"""Splits by patient: each patient on one side, every label on both."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from disentangled_mil.data.folds import inner_split, patient_folds, pool_rare


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(4, 15), min_size=1, max_size=4),
    folds=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_every_patient_is_tested_once_and_labels_are_balanced(counts, folds, seed):
    labels = [f"class {c}" for c, count in enumerate(counts) for _ in range(count)]
    patients = [f"patient {p}" for p in range(len(labels))]
    label = dict(zip(patients, labels, strict=True))
    splits = patient_folds(patients, labels, folds=folds, seed=seed)
    assert splits == patient_folds(patients, labels, folds=folds, seed=seed)
    assert sorted(p for split in splits for p in split.test) == sorted(patients)
    for split in splits:
        assert [p for p in patients if p in set(split.train)] == list(split.train)
        assert set(split.train) | set(split.test) == set(patients)
        assert not set(split.train) & set(split.test)
        tested = Counter(label[p] for p in split.test)
        for c, count in enumerate(counts):
            assert count // folds <= tested[f"class {c}"] <= -(-count // folds)


def test_folds_are_those_of_scikit_learn_in_the_order_given():
    labels = pd.Series([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0], index=list("hgfedcba"))
    ours = patient_folds(labels.index, labels, folds=3, seed=5)
    theirs = StratifiedKFold(3, shuffle=True, random_state=5).split(labels, labels)
    assert [fold.test for fold in ours] == [tuple(labels.index[test]) for _, test in theirs]


def test_names_numbers_and_booleans_stratify_alike():
    events = [True, False] * 6
    folds = [patient_folds("abcdefghijkl", kind) for kind in (events, [str(e) for e in events], pd.Series(events))]
    assert folds[0] == folds[1] == folds[2]


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(6, 15), min_size=1, max_size=3),
    fraction=st.sampled_from([0.2, 0.25, 0.5]),
    seed=st.integers(0, 99),
)
def test_an_inner_split_has_every_label_on_both_sides(counts, fraction, seed):
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    label = {f"patient {p}": c for p, c in enumerate(labels)}
    split = inner_split(label, labels, fraction=fraction, seed=seed)
    assert split == inner_split(label, labels, fraction=fraction, seed=seed)
    assert set(split.train) | set(split.test) == set(label)
    assert len(split.train) + len(split.test) == len(label)
    assert len(split.test) == -(-len(label) * fraction // 1)
    for side in split:
        assert {label[p] for p in side} == set(labels)


def test_seeds_give_other_splits():
    patients, labels = [str(p) for p in range(40)], [0, 1] * 20
    assert patient_folds(patients, labels, seed=0) != patient_folds(patients, labels, seed=1)
    assert inner_split(patients, labels, seed=0) != inner_split(patients, labels, seed=1)


@pytest.mark.parametrize("split", [patient_folds, inner_split])
@pytest.mark.parametrize(
    ("patients", "labels", "message"),
    [
        ("abc", [0, 1], "labels must have one entry per patient = 3, got 2"),
        ("aba", [0, 1, 0], "patients must be different, got 'a' 2 times"),
        ("", [], "patients must not be empty"),
        ("ab", [0, None], "every patient must have a label, got None for 'b'"),
        ("ab", [float("nan"), 0], "every patient must have a label, got nan for 'a'"),
        ("abcdefg", [0] * 6 + [1], r"every label must have at least \d patients \(one .*\), got 1 with '1'"),
    ],
)
def test_patients_that_cannot_be_stratified_are_refused(split, patients, labels, message):
    with pytest.raises(ValueError, match=message):
        split(patients, labels)


def test_numbers_of_folds_and_fractions_out_of_range_are_refused():
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        patient_folds("abcd", [0, 0, 1, 1], folds=1)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
            inner_split("abcd", [0, 0, 1, 1], fraction=fraction)
    with pytest.raises(ValueError, match=r"one patient per label \(2\) on each side, got 0.2: 3 and 1 patients"):
        inner_split("abcd", [0, 0, 1, 1], fraction=0.2)


@pytest.mark.parametrize(
    ("grades", "minimum", "expected"),
    [
        (["G2"] * 6 + ["G3"] * 5 + ["G4"], 2, {"G2": 7, "G3": 5}),
        (["G2"] * 6 + ["G3"] + ["G4"], 2, {"G2": 6, "rare": 2}),
        (["G2"] * 6 + ["G3"] * 6, 2, {"G2": 6, "G3": 6}),
        (["G2"] * 6 + ["G3"] * 4 + ["G4"], 5, {"G2": 6, "rare": 5}),
        (["G2"] * 6 + ["G3"] * 3 + ["G4"], 5, {"G2": 10}),
    ],
)
def test_rare_strata_are_pooled(grades, minimum, expected):
    assert Counter(pool_rare(grades, minimum)) == expected
