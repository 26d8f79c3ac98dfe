import math

import pytest

from disentangled_mil.report.tables import (
    NAMES,
    folds_table,
    gains_table,
    headroom_line,
    headroom_table,
    results_table,
)
from disentangled_mil.tasks import Classification, DiscreteSurvival

FOLDS = [
    {
        "genes": {"test": {"auc": 0.5, "accuracy": 0.25, "f1": 0.1}},
        "distilled": {"test": {"auc": 0.75, "accuracy": 0.5, "f1": 0.3}},
    },
    {
        "genes": {"test": {"auc": 0.7, "accuracy": 0.25, "f1": 0.2}},
        "distilled": {"test": {"auc": 0.85, "accuracy": 0.625, "f1": 0.3}},
    },
]


def test_a_single_run_shows_its_numbers():
    table = results_table(FOLDS[:1], Classification, "test")
    assert table.index.tolist() == [NAMES["genes"], NAMES["distilled"]]
    assert table.columns.tolist() == ["AUC", "accuracy"]
    assert table.to_numpy().tolist() == [["0.500", "0.250"], ["0.750", "0.500"]]


def test_several_runs_show_mean_and_standard_deviation():
    table = results_table(FOLDS, Classification(["low", "high"]), "test")
    # Two values lie their difference / sqrt(2) from one another in standard deviations with n - 1.
    assert table.loc[NAMES["genes"]].tolist() == ["0.600 ± 0.141", "0.250 ± 0.000"]
    assert table.loc[NAMES["distilled"]].tolist() == ["0.800 ± 0.071", "0.562 ± 0.088"]


def test_every_metric_is_shown_on_demand():
    table = results_table(FOLDS, Classification, "test", every=True)
    assert table.columns.tolist() == ["AUC", "accuracy", "F1"]
    assert table.loc[NAMES["genes"], "F1"] == "0.150 ± 0.071"


def test_numbers_of_patients_and_pairs_are_no_measures_of_quality():
    splits = [{"teacher": {"test": {"c_index": 0.7, "patients": 9, "comparable_pairs": 12}}}] * 2
    assert results_table(splits, DiscreteSurvival, "test", every=True).columns.tolist() == ["C-index"]


def test_a_table_holds_the_models_of_its_test_set():
    splits = [{"teacher": {"external": {"c_index": 0.65}}, "student": {"internal": {"c_index": 0.7}}}]
    table = results_table(splits, DiscreteSurvival, "external")
    assert table.index.tolist() == [NAMES["teacher"]]
    assert table.to_numpy().tolist() == [["0.650"]]


def test_chance_comes_first_and_is_empty_where_it_is_not_known():
    table = results_table(FOLDS, Classification, "test", every=True, chance={"auc": 0.5, "accuracy": 0.75})
    assert table.index.tolist() == ["chance", NAMES["genes"], NAMES["distilled"]]
    assert table.loc["chance"].tolist() == ["0.500", "0.750", ""]


def test_folds_show_their_patients_and_the_first_metric_of_their_models():
    counts = [{"patients": 9, "labels": "high 4, low 5"}, {"patients": 8, "labels": "high 4, low 4"}]
    table = folds_table([{"genes": FOLDS[0]["genes"]}, FOLDS[1]], Classification, "test", counts)
    assert table.columns.tolist() == ["patients", "labels", "SNN", "distilled student"]
    assert table.loc["fold0"].tolist() == ["9", "high 4, low 5", "0.500", ""]
    assert table.loc["fold1"].tolist() == ["8", "high 4, low 4", "0.700", "0.850"]


def test_a_metric_that_is_not_defined_is_shown_as_such():
    splits = [{"teacher": {"test": {"c_index": value}}} for value in (0.7, math.nan)]
    assert results_table(splits, DiscreteSurvival, "test").iat[0, 0] == "nan ± nan"


def test_a_table_of_no_split_is_refused():
    with pytest.raises(ValueError, match=r"^splits must hold the metrics of at least one model on 'test', got none$"):
        results_table([], Classification, "test")


def test_a_model_that_some_splits_lack_says_so_and_keeps_its_own_mean():
    table = results_table([{"genes": FOLDS[0]["genes"]}, FOLDS[1]], Classification, "test")
    assert table.index.tolist() == [NAMES["genes"], f"{NAMES['distilled']}, 1 of 2 splits"]
    assert table.iloc[1].tolist() == ["0.850", "0.625"]


def test_gains_are_shown_with_their_intervals():
    gain = {"first": "distilled", "second": "student", "splits": 3, "difference": 0.022, "low": -0.001, "high": None}
    teacher = {**gain, "first": "teacher", "low": 0.001}
    compared = {
        "internal": {"metric": "auc", "patients": 9, "gains": [gain, teacher], "headroom_taken": 0.1},
        "external": {"metric": "auc", "patients": 9, "gains": [gain], "headroom_taken": None},
    }
    table = gains_table(compared, Classification)
    assert table.columns.tolist() == ["internal AUC", "external AUC"]
    assert table.loc["distilled student minus student"].tolist() == ["+0.022 [-0.001, +nan]"] * 2
    assert table.loc["share of the teacher's gain"].tolist() == ["10%", ""]
    teacher["low"] = -0.001
    table = gains_table(compared, Classification)
    assert table.loc["share of the teacher's gain"].tolist() == ["none, as that gain may be 0", ""]
    assert gains_table({}, Classification).empty


def test_headroom_is_one_line():
    headroom = {"metric": "c_index", "patients": 40, "teacher": 0.7, "linear": 0.65, "distilled": True}
    headroom |= {"difference": 0.05, "low": 0.01, "high": 0.11}
    line = headroom_line(headroom, DiscreteSurvival)
    assert line == (
        "headroom: out-of-fold C-index of 40 training patients: "
        "teacher 0.700, linear model on slides 0.650, gain +0.050 [+0.010, +0.110]"
    )
    declined = headroom | {"distilled": False, "low": -0.01}
    assert headroom_line(declined, DiscreteSurvival).endswith(
        "gain +0.050 [-0.010, +0.110]; distillation is declined: the interval begins at -0.010, not above 0"
    )
    table = headroom_table([headroom, None, declined], DiscreteSurvival)
    assert table.loc["fold0"].tolist() == ["40", "0.700", "0.650", "+0.050 [+0.010, +0.110]", "yes"]
    assert table.loc["fold2", "distilled"] == "no: interval not above 0"
    table = headroom_table([declined | {"low": None}], DiscreteSurvival)
    assert table.loc["", "distilled"] == "no: interval not above 0"
