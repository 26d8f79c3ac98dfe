"""Cohorts: samples, labels and expression of the same patients stay together."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from disentangled_mil.bags import Bag, TokenSet
from disentangled_mil.data.cohort import Cohort, Sample, StoredBag
from disentangled_mil.data.expression import ExpressionOptions
from disentangled_mil.data.slides import write_bag
from disentangled_mil.tasks import Classification, DiscreteSurvival

BAG = Bag.from_slide(torch.ones(3, 4))
TASKS = {
    "diagnosis": Classification.define(column="diagnosis"),
    "grading": Classification.define(column="grade"),
    "survival": DiscreteSurvival.define(time="time", event="event", zero_times="keep"),
}


def cohort(**changes: object) -> Cohort:
    clinical = pd.DataFrame(
        {
            "diagnosis": ["x", None, "y"],
            "grade": [None, None, None],
            "time": [0.0, 5.0, float("nan")],
            "event": [1.0, 0.0, 1.0],
        },
        index=["A", "B", "C"],
    )
    given: dict[str, object] = {
        "samples": tuple(Sample(f"{p}{n}", p, {"10x": BAG, "20x": BAG}) for p in "ABC" for n in (1, 2)),
        "clinical": clinical,
        "expression": pd.DataFrame({"EGFR": [1.0, 2.0], "CD2": [0.0, 3.0]}, index=["C", "A"]),
        "gene_sets": {"tumor": ("EGFR",), "tme": ("CD2",)},
        "expression_options": ExpressionOptions(fraction=1.0),
        "tasks": TASKS,
    }
    return Cohort(**(given | changes))


def test_a_cohort_knows_its_patients_magnifications_and_width():
    whole = cohort()
    assert whole.patients == ("A", "B", "C")
    assert whole.magnifications == ("10x", "20x")
    assert whole.width == 4
    assert whole.samples[0].load() == {"10x": BAG, "20x": BAG}


def test_a_subset_keeps_samples_labels_and_expression_of_its_patients_in_order():
    part = cohort().subset(["C", "A"])
    assert part.patients == ("A", "C")
    assert [sample.name for sample in part.samples] == ["A1", "A2", "C1", "C2"]
    assert list(part.expression.index) == ["C", "A"]
    assert cohort(expression=None).subset("B").expression is None
    assert part.gene_sets == cohort().gene_sets


def test_patients_are_split_by_whether_they_have_expression():
    assert cohort().with_expression().patients == ("A", "C")
    unpaired = cohort().subset(["B"])
    assert len(unpaired.expression) == 0
    pipeline = cohort().fit_expression()
    assert pipeline.transform(unpaired.expression)["tumor"].shape == (0, 1)
    assert cohort(expression=None).paired == frozenset()


def test_genes_are_counted_by_symbol():
    sets = {"tumor": ("EGFR|1956", "TP53", "EGFR"), "tme": ("CD2",)}
    assert cohort(gene_sets=sets).genes_found() == {"tumor": (1, 2), "tme": (1, 1)}
    assert cohort(gene_sets=sets).genes_absent() == {"tumor": ("TP53",), "tme": ()}
    assert cohort(gene_sets=["EGFR", "CD2"]).fit_expression().sizes == {"genes": 2}
    assert cohort(expression=None).genes_found() == {"tumor": (0, 1), "tme": (0, 1)}


@pytest.mark.parametrize(
    ("select", "got"),
    [
        (lambda: cohort().subset([]), "none"),
        (lambda: cohort().subset(["A", "Z"]), "Z"),
        (lambda: cohort(expression=None).with_expression(), "none"),
    ],
)
def test_subsets_of_nobody_or_of_strangers_are_refused(select, got):
    with pytest.raises(ValueError, match=rf"patients must be some of the cohort's \d, got {got}"):
        select()


def test_labels_leave_out_patients_who_lack_them():
    assert cohort().labels("diagnosis")["label"].to_dict() == {"A": "x", "C": "y"}
    survival = cohort().labels("survival")
    assert survival.to_dict("index") == {
        "A": {"time": 0.0, "event": True},
        "B": {"time": 5.0, "event": False},
    }
    assert survival["event"].dtype == bool


@pytest.mark.parametrize(
    "event",
    [
        [True, False, True],
        [1, 0, 1],
        pd.array([1, 0, 1], dtype="Int64"),
        pd.array([True, False, None], dtype="boolean"),
        np.array([True, False, None], dtype=object),
        ["1", "0.0", "1"],
    ],
)
def test_events_of_any_type_are_0_or_1(event):
    survival = cohort(clinical=cohort().clinical.assign(event=event)).labels("survival")
    assert survival["event"].dtype == bool
    assert survival["event"].to_dict() == {"A": True, "B": False}


@pytest.mark.parametrize(
    ("event", "got"),
    [
        ([1, 2, 1], "2"),
        ([1.0, 0.5, 1.0], r"0\.5"),
        ([True, "Alive", False], "'Alive'"),
        (pd.Categorical(["dead", "alive", "dead"]), "'dead'"),
    ],
)
def test_events_coded_otherwise_are_refused(event, got):
    clinical = cohort().clinical.assign(event=event)
    message = (
        rf"clinical, patient '[AB]': task 'survival', column 'event': event must be 1 .* or 0 \(censored\), got {got}"
    )
    with pytest.raises(ValueError, match=message):
        cohort(clinical=clinical).labels("survival")


def test_events_may_be_coded_as_the_definition_says():
    died = DiscreteSurvival.define(time="time", event="vital", observed="Dead", censored="Alive", zero_times="keep")
    clinical = cohort().clinical.assign(vital=["dead", "Alive", "Dead"])
    assert cohort(clinical=clinical, tasks={"os": died}).labels("os")["event"].tolist() == [True, False]


def test_tasks_without_labels_are_refused():
    with pytest.raises(ValueError, match=r"^task must be one of 'diagnosis', 'grading', 'survival', got 'stage'$"):
        cohort().labels("stage")
    with pytest.raises(ValueError, match=r"must define a task to use, e\.g\. in a section \[tasks\.stage\], got none"):
        cohort(tasks={}).labels("stage")
    with pytest.raises(ValueError, match="task 'grading' needs at least one patient with grade, got none"):
        cohort().labels("grading")
    with pytest.raises(
        ValueError, match=r"task 'diagnosis' needs the clinical column 'diagnosis', got \['grade', 'time'"
    ):
        cohort(clinical=cohort().clinical[["grade", "time", "event"]])


def test_a_task_is_fitted_on_the_patients_of_the_cohort():
    three = cohort(clinical=cohort().clinical.assign(diagnosis=["x", "y", "z"]))
    assert three.fit_task("diagnosis").classes == ("x", "y", "z")
    assert three.subset("BC").fit_task("diagnosis").classes == ("y", "z")


def test_expression_is_fitted_on_the_patients_of_the_cohort():
    assert cohort().fit_expression().sizes == {"tumor": 1, "tme": 1}
    with pytest.raises(ValueError, match="must hold at least two patients, got 1"):
        cohort().subset(["A", "B"]).fit_expression()
    with pytest.raises(ValueError, match="a cohort must have expression to fit its pipeline, got none"):
        cohort(expression=None).fit_expression()


def test_inconsistent_cohorts_are_refused():
    whole = cohort()
    stranger = Sample("Z1", "Z", {"10x": BAG, "20x": BAG})
    for changes, message in (
        (
            {"clinical": pd.concat([whole.clinical, whole.clinical[:1]])},
            "clinical must hold every patient once, got 'A'",
        ),
        (
            {"expression": whole.expression.rename({"A": "C"})},
            "expression must hold every patient once, got 'C' twice",
        ),
        (
            {"expression": whole.expression.rename({"A": "Z"})},
            "must hold patients of clinical only, got 1 others: Z",
        ),
        (
            {"samples": (*whole.samples, stranger)},
            "samples must belong to patients of clinical, got 1 others: Z",
        ),
        ({"samples": whole.samples[2:]}, "every patient of clinical must have a sample, got 1 others: A"),
        (
            {"samples": (*whole.samples, Sample("A3", "A", {"20x": BAG}))},
            r"the same magnifications, got \('10x', '20x'\)",
        ),
        (
            {"samples": (), "clinical": whole.clinical[:0], "expression": None},
            "same magnifications, got no sample",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            cohort(**changes)


def slide(path: Path, features: torch.Tensor) -> Path:
    write_bag(path, features, torch.arange(2 * len(features)).reshape(-1, 2) % 3 * 448)
    return path


def test_a_stored_bag_is_one_slide_with_coordinates_or_several_without(tmp_path):
    first, second = slide(tmp_path / "1.h5", torch.rand(4, 3)), slide(tmp_path / "2.h5", torch.rand(5, 3))
    one, both = StoredBag((first,)).load(), StoredBag((first, second)).load()
    assert one.grid.shapes == ((3, 3),)
    assert both.patches.shape == (1, 9, 3)
    assert isinstance(both.grid, TokenSet)
    assert isinstance(StoredBag((first,), as_set=True).load().grid, TokenSet)
    sample = Sample("A", "A", {"10x": StoredBag((first,)), "20x": BAG})
    assert torch.equal(sample.load()["10x"].patches, one.patches)
    assert sample.load()["20x"] is BAG
    stored = cohort(samples=tuple(Sample(p, p, {"20x": StoredBag((first,))}) for p in "ABC"))
    assert stored.width == 3


def test_probabilities_are_logged_in_float32(tmp_path):
    probabilities = torch.tensor([[0.0, 0.25], [0.75, 1.0]])
    path = slide(tmp_path / "1.h5", probabilities.half())
    patches = StoredBag((path,), transform="log").load().patches
    torch.testing.assert_close(patches[0], torch.log(probabilities + 1e-6))
    path = slide(tmp_path / "2.h5", -probabilities)
    with pytest.raises(ValueError, match=r"2\.h5: transform 'log' needs features >= 0, got -1"):
        StoredBag((path,), transform="log").load()


def test_stored_bags_of_nothing_or_of_unknown_transforms_are_refused(tmp_path):
    with pytest.raises(ValueError, match="paths must hold at least one file, got none"):
        StoredBag(())
    with pytest.raises(ValueError, match="transform must be one of 'none', 'log', got 'sqrt'"):
        StoredBag((tmp_path,), transform="sqrt")
    with pytest.raises(ValueError, match="step must be positive and finite, got 0"):
        StoredBag((tmp_path,), step=0)
