from disentangled_mil.report.run_report import run_report
from disentangled_mil.tasks import Classification

COUNTS = {"patients": 9, "labels": "high 4, low 5", "chance": {"auc": 0.5, "accuracy": 5 / 9}}
METRICS = {
    "linear": {"internal": {"auc": 0.75, "accuracy": 0.5}},
    "student": {"internal": {"auc": 0.8, "accuracy": 0.6}},
}


def content(splits: int, metrics=METRICS):
    counts = {"all": COUNTS | {"patients": 9 * splits}, "splits": [COUNTS] * splits}
    nothing = {"gains": {}, "headroom": [None] * splits}
    return {"splits": [metrics] * splits, "tests": {"internal": counts}, **nothing}


def test_one_split_is_a_block_with_meaning_patients_and_chance():
    first, second, *table = run_report(content(1), Classification).splitlines()
    assert first == "internal: held-out patients of the hospital whose patients train"
    assert second == "9 patients: high 4, low 5"
    assert [line.split()[-2:] for line in table] == [
        ["AUC", "accuracy"],
        ["0.500", "0.556"],
        ["0.750", "0.500"],
        ["0.800", "0.600"],
    ]


def test_several_folds_are_shown_one_by_one():
    text = run_report(content(2), Classification)
    assert "18 patients: high 4, low 5" in text
    assert "mean ± standard deviation of 2 folds; AUC in each fold:" in text
    assert text.splitlines()[-1].split() == ["fold1", "9", "high", "4,", "low", "5", "0.750", "0.800"]


def test_a_metric_without_a_value_is_explained():
    lacking = {"linear": {"internal": {"auc": None, "accuracy": 0.5}}}
    assert run_report(content(1, lacking), Classification).endswith(Classification.undefined)
