from dataclasses import replace

import pandas as pd
import pytest
import torch

from disentangled_mil import Bag, Classification, DiscreteSurvival, Grid
from disentangled_mil.data.cohort import Cohort, Sample, StoredBag
from disentangled_mil.data.slides import write_bag
from disentangled_mil.train.bag_cache import BagCache
from disentangled_mil.train.datasets import CohortDataset


def sample(name: str, value: float, patient: str = "A") -> Sample:
    return Sample(name, patient, {"20x": Bag.from_slide(torch.full((4, 2), value))})


@pytest.mark.parametrize(
    ("counts", "uniform"),
    [
        pytest.param((4, 4), True, id="equal"),
        pytest.param((4, 9), False, id="another square"),
        pytest.param((4, 6), False, id="another rectangle"),
        pytest.param((3, 3), False, id="the last cell is empty"),
    ],
)
def test_bags_are_uniform_if_all_fill_one_rectangle(counts, uniform):
    samples = tuple(
        Sample(
            name,
            name,
            {
                "10x": Bag(torch.ones(1, counts[0], 2), Grid.square(counts[0])),
                "20x": Bag(torch.ones(1, count, 2), Grid.square(count)),
            },
        )
        for name, count in zip("AB", counts, strict=True)
    )
    clinical = pd.DataFrame({"stage": ["x", "y"]}, index=["A", "B"])
    cohort = Cohort(samples, clinical, tasks={"stage": Classification.define(column="stage")})
    dataset = CohortDataset(cohort, "stage", Classification(["x", "y"]))
    assert dataset.uniform is uniform
    assert dataset.sets == ()


def test_bags_without_coordinates_are_sets_and_not_uniform():
    samples = tuple(
        Sample(name, name, {"10x": Bag(torch.ones(1, 4, 2), Grid.square(4)), "20x": Bag(torch.ones(1, 4, 2))})
        for name in "AB"
    )
    clinical = pd.DataFrame({"stage": ["x", "y"]}, index=["A", "B"])
    cohort = Cohort(samples, clinical, tasks={"stage": Classification.define(column="stage")})
    dataset = CohortDataset(cohort, "stage", Classification(["x", "y"]))
    assert dataset.sets == ("20x",)
    assert not dataset.uniform


def test_patients_without_the_label_are_left_out(split):
    clinical = split.train.clinical.copy()
    clinical.loc[split.train.patients[0], "grade"] = None
    cohort = replace(split.train, clinical=clinical)
    dataset = CohortDataset(cohort, "grading", Classification(["G2", "G3", "G4"]))
    assert set(dataset.patients) == set(split.train.patients[1:])
    assert len(dataset) == sum(s.patient != split.train.patients[0] for s in cohort.samples)


def test_every_sample_has_its_own_patients_genes_and_target(split, dataset):
    genes = split.train.fit_expression().transform(split.train.expression)
    rows = {patient: row for row, patient in enumerate(split.train.expression.index)}
    batch = dataset.batch([5, 0, len(dataset) - 1])
    assert batch.rows.tolist() == [5, 0, len(dataset) - 1]
    for place, row in enumerate(batch.rows.tolist()):
        patient, stored = dataset.patients[row], dataset.samples[row].load()
        assert batch.target[place] == ["G2", "G3", "G4"].index(split.train.clinical["grade"][patient])
        assert batch.paired[place] == (patient in rows)
        for name, values in batch.genes.items():
            wanted = genes[name][rows[patient]] if patient in rows else torch.zeros_like(values[place])
            assert torch.equal(values[place], wanted)
        for name, bag in batch.bags.items():
            assert torch.equal(bag.patches[place][bag.mask[place]], stored[name].patches[0])
    assert batch.paired.tolist() == [True, True, False]


def test_batches_hold_every_sample_once_in_order_or_shuffled_by_the_generator(dataset):
    def order(generator=None):
        return torch.cat([batch.rows for batch in dataset.batches(7, generator)]).tolist()

    everyone = list(range(len(dataset)))
    assert order() == everyone
    first = order(torch.Generator().manual_seed(1))
    assert first != everyone
    assert sorted(first) == everyone
    assert first == order(torch.Generator().manual_seed(1)) != order(torch.Generator().manual_seed(2))
    assert [len(batch.rows) for batch in dataset.batches(len(dataset) - 1)] == [len(dataset) - 1, 1]


def test_survival_targets_follow_the_samples_and_the_device(split):
    task = DiscreteSurvival(torch.tensor([400.0, 900.0]))
    dataset = CohortDataset(split.train, "survival", task)
    batch = dataset.batch([3, 1]).to("cpu")
    table = split.train.clinical.loc[[dataset.patients[3], dataset.patients[1]]]
    assert batch.target.event.tolist() == table["event"].astype(bool).tolist()
    assert batch.target.interval.tolist() == [(time >= 400) + (time >= 900) for time in table["time"]]
    assert batch.genes == {}
    assert not batch.paired.any()
    assert batch.to("meta").target.interval.device.type == "meta"


def test_a_cohort_without_expression_has_no_paired_sample(split):
    cohort = replace(split.train, expression=None)
    dataset = CohortDataset(cohort, "grading", Classification(["G2", "G3", "G4"]), split.train.fit_expression())
    assert not dataset.paired.any()


def test_a_class_that_the_task_does_not_know_is_refused(split):
    with pytest.raises(ValueError, match="'G4'"):
        CohortDataset(split.train, "grading", Classification(["G2", "G3"]))


def test_a_label_that_nobody_has_is_refused():
    tasks = {"grading": Classification.define(column="grade")}
    cohort = Cohort((sample("a", 1.0),), pd.DataFrame({"grade": [None]}, index=["A"]), tasks=tasks)
    with pytest.raises(ValueError, match="at least one patient with grade, got none"):
        CohortDataset(cohort, "grading", Classification(["G2", "G3"]))


def dataset_of(counts: list[int]) -> CohortDataset:
    """A sample of every number of tokens, each token with a feature of its own."""
    samples = tuple(
        Sample(str(i), str(i), {"20x": Bag(torch.arange(float(count)).reshape(1, count, 1), Grid.square(count))})
        for i, count in enumerate(counts)
    )
    clinical = pd.DataFrame({"stage": ["x", "y"] * (len(counts) // 2)}, index=[s.patient for s in samples])
    cohort = Cohort(samples, clinical, tasks={"stage": Classification.define(column="stage")})
    return CohortDataset(cohort, "stage", Classification(["x", "y"]))


def test_a_drawn_dataset_has_other_tokens_of_large_bags_in_every_draw():
    dataset = dataset_of([36, 9])
    first, again, second = (dataset.drawn(16, draw).batch([0, 1]).bags["20x"] for draw in (0, 0, 1))
    assert first.mask.sum(1).tolist() == second.mask.sum(1).tolist() == [16, 9]
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(first.patches[0], second.patches[0])
    assert torch.equal(first.patches[1, :9], dataset.batch([1]).bags["20x"].patches[0])
    assert torch.isin(first.patches[0], torch.arange(36.0)).all()


def test_a_drawn_dataset_is_uniform_only_if_no_bag_is_thinned():
    dataset = dataset_of([16, 16])
    assert dataset.drawn(16, 0).uniform
    assert not dataset.drawn(15, 0).uniform


def test_a_drawn_dataset_passes_its_limit_on_to_its_parts():
    part = dataset_of([36, 36, 9, 9]).drawn(16, 0).subset([0, 2])
    assert part.batch([0, 1]).bags["20x"].mask.sum(1).tolist() == [16, 9]


def test_batches_of_a_drawn_dataset_are_ordered_by_the_tokens_that_are_left():
    sizes = [4000, 1100, 1200, 3000]
    drawn = dataset_of(sizes).drawn(1000, 0)
    batches = [batch.bags["20x"].mask for batch in drawn.batches(2, torch.Generator().manual_seed(0))]
    assert all(mask.all() and mask.shape[1] == 1000 for mask in batches)


def test_batches_without_slides_read_none_and_keep_their_order(monkeypatch):
    dataset = dataset_of([36, 9, 16, 25])
    orders = [
        [batch.rows.tolist() for batch in part.batches(2, torch.Generator().manual_seed(0))]
        for part in (dataset, dataset.without_slides())
    ]
    assert orders[0] == orders[1]
    monkeypatch.setattr(Sample, "load", lambda self: pytest.fail("a slide was read"))
    batch = dataset.without_slides().batch([0, 1])
    assert batch.bags == {}
    assert batch.tiles["20x"].tolist() == [True, True]


def test_a_thinned_dataset_reads_again_without_the_warnings_of_the_first_reading(tmp_path):
    coords = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    write_bag(tmp_path / "a.h5", torch.ones(25, 2), coords, step=1)
    bag = StoredBag((tmp_path / "a.h5",), max_tokens=20)
    clinical = pd.DataFrame({"stage": ["x"]}, index=["A"])
    cohort = Cohort((Sample("A", "A", {"20x": bag}),), clinical, tasks={"stage": Classification.define(column="stage")})
    cache = BagCache()
    with pytest.warns(UserWarning, match="1 of 1 bags of slides are read in part"):
        cache.check(cohort.samples, quiet=True)
    thinned = CohortDataset(cohort, "stage", Classification(["x", "y"]), cache=cache).thinned(10)
    assert thinned.batch([0]).bags["20x"].mask.sum() == 10
