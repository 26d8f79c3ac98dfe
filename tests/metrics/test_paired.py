"""Paired differences of models: draws by patient within strata, and intervals that hold what they promise."""

import numpy as np
import pytest
from scipy import stats

from disentangled_mil.metrics import bootstrap_patients, paired_difference, percentile_interval


def test_every_draw_keeps_the_size_of_every_stratum():
    strata = ["a"] * 5 + ["b"] + ["c"] * 3
    seen = []

    def metric(rows):
        seen.append([strata[row] for row in rows])
        return 0.0

    assert len(bootstrap_patients(metric, strata, resamples=20)) == len(seen) == 21
    for drawn in seen:
        assert sorted(drawn) == strata


def test_the_same_patients_are_drawn_for_every_model_and_others_for_another_seed():
    values = np.random.default_rng(0).random(30)
    strata = [row % 2 for row in range(30)]
    first, again = (bootstrap_patients(lambda rows: values[rows].mean(), strata, seed=4) for _ in range(2))
    other = bootstrap_patients(lambda rows: values[rows].mean(), strata, seed=5)
    assert (first == again).all()
    assert first[0] == other[0]
    assert (first[1:] != other[1:]).any()


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    """The bootstrap of a mean difference of 400 patients against its standard error."""
    random = np.random.default_rng(1)
    common, one, two = random.normal(size=400) * 5, random.normal(size=400) + 0.3, random.normal(size=400)
    draws = [bootstrap_patients(lambda rows, v=v: v[rows].mean(), [0] * 400) for v in (common + one, common + two)]
    found = paired_difference(*draws)
    difference = one - two
    low, high = stats.norm.interval(0.95, difference.mean(), stats.sem(difference))
    assert found.difference == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_difference_turns_round_with_the_models():
    draws = np.random.default_rng(2).random((2, 101))
    one, two = paired_difference(*draws), paired_difference(*draws[::-1])
    assert (one.difference, one.low, one.high) == pytest.approx((-two.difference, -two.high, -two.low))


def test_draws_without_a_value_are_left_out():
    found = paired_difference([0.5, np.nan, 0.7, 0.7], [0.25, 0.1, 0.5, 0.5])
    assert found == pytest.approx((0.25, 0.2, 0.2))
    assert np.isnan(paired_difference([np.nan] * 3, [0.0] * 3)).all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"must have one shape \[1 \+ R\] with R >= 1, got \[3\] and \[2\]$"):
        paired_difference([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match=r"^confidence must lie in \(0, 1\], got 95$"):
        paired_difference([0, 1], [0, 1], confidence=95)
    with pytest.raises(ValueError, match=r"^strata must have one entry per patient, got none$"):
        bootstrap_patients(lambda rows: 0.0, [])


def test_an_interval_is_that_of_a_difference_from_nothing():
    draws = bootstrap_patients(lambda rows: rows.mean(), "a" * 30, resamples=100)
    assert percentile_interval(draws, confidence=0.9) == paired_difference(draws, np.zeros(101), confidence=0.9)
    assert percentile_interval([0.5, np.nan, 0.25])[1:] == (0.25, 0.25)
    assert np.isnan(percentile_interval([0.5, np.nan])[1:]).all()
    with pytest.raises(ValueError, match=r"^draws must have shape \[1 \+ R\] with R >= 1, got \[1\]$"):
        percentile_interval([0.5])
