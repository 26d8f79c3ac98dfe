from dataclasses import replace

import pandas as pd
import pytest
import torch

from disentangled_mil import Bag, Classification, DiscreteSurvival, Grid
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.train.examples import BagMemory, Examples


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
    clinical = pd.DataFrame({"diagnosis": ["x", "y"]}, index=["A", "B"])
    examples = Examples(Cohort(samples, clinical), Classification(["x", "y"]), "diagnosis")
    assert examples.uniform is uniform
    assert examples.sets == ()


def test_bags_without_coordinates_are_sets_and_not_uniform():
    samples = tuple(
        Sample(name, name, {"10x": Bag(torch.ones(1, 4, 2), Grid.square(4)), "20x": Bag(torch.ones(1, 4, 2))})
        for name in "AB"
    )
    clinical = pd.DataFrame({"diagnosis": ["x", "y"]}, index=["A", "B"])
    examples = Examples(Cohort(samples, clinical), Classification(["x", "y"]), "diagnosis")
    assert examples.sets == ("20x",)
    assert not examples.uniform


def test_a_cohort_with_coordinates_for_some_bags_only_is_refused_by_name():
    placed = Sample("A", "A", {"20x": Bag(torch.ones(1, 4, 2), Grid.square(4))})
    without = Sample("B", "B", {"20x": Bag(torch.ones(1, 4, 2))})
    BagMemory().check([placed, placed], quiet=True)
    message = "^20x bags must all have coordinates or all have none, got 'B' without and 'A' with them$"
    for samples in ([placed, without], [without, placed]):
        with pytest.raises(ValueError, match=message):
            BagMemory().check(samples, quiet=True)


def test_patients_without_the_label_are_left_out(split):
    clinical = split.train.clinical.copy()
    clinical.loc[split.train.patients[0], "grade"] = None
    cohort = replace(split.train, clinical=clinical)
    examples = Examples(cohort, Classification(["G2", "G3", "G4"]), "grading")
    assert set(examples.patients) == set(split.train.patients[1:])
    assert len(examples) == sum(s.patient != split.train.patients[0] for s in cohort.samples)


def test_every_sample_has_its_own_patients_genes_and_target(split, examples):
    genes = split.train.fit_expression().transform(split.train.expression)
    rows = {patient: row for row, patient in enumerate(split.train.expression.index)}
    batch = examples.batch([5, 0, len(examples) - 1])
    assert batch.rows.tolist() == [5, 0, len(examples) - 1]
    for place, row in enumerate(batch.rows.tolist()):
        patient, stored = examples.patients[row], examples.samples[row].load()
        assert batch.target[place] == ["G2", "G3", "G4"].index(split.train.clinical["grade"][patient])
        assert batch.paired[place] == (patient in rows)
        for name, values in batch.genes.items():
            wanted = genes[name][rows[patient]] if patient in rows else torch.zeros_like(values[place])
            assert torch.equal(values[place], wanted)
        for name, bag in batch.bags.items():
            assert torch.equal(bag.patches[place][bag.mask[place]], stored[name].patches[0])
    assert batch.paired.tolist() == [True, True, False]


def test_batches_hold_every_sample_once_in_order_or_shuffled_by_the_generator(examples):
    def order(generator=None):
        return torch.cat([batch.rows for batch in examples.batches(7, generator)]).tolist()

    everyone = list(range(len(examples)))
    assert order() == everyone
    first = order(torch.Generator().manual_seed(1))
    assert first != everyone
    assert sorted(first) == everyone
    assert first == order(torch.Generator().manual_seed(1)) != order(torch.Generator().manual_seed(2))
    assert [len(batch.rows) for batch in examples.batches(len(examples) - 1)] == [len(examples) - 1, 1]


def test_survival_targets_follow_the_samples_and_the_device(split):
    task = DiscreteSurvival(torch.tensor([400.0, 900.0]))
    examples = Examples(split.train, task, "survival")
    batch = examples.batch([3, 1]).to("cpu")
    table = split.train.clinical.loc[[examples.patients[3], examples.patients[1]]]
    assert batch.target.event.tolist() == table["event"].astype(bool).tolist()
    assert batch.target.interval.tolist() == [(time >= 400) + (time >= 900) for time in table["time"]]
    assert batch.genes == {}
    assert not batch.paired.any()
    assert batch.to("meta").target.interval.device.type == "meta"


def test_a_cohort_without_expression_has_no_paired_sample(split):
    cohort = replace(split.train, expression=None)
    examples = Examples(cohort, Classification(["G2", "G3", "G4"]), "grading", split.train.fit_expression())
    assert not examples.paired.any()


def test_memory_reads_a_sample_once_until_it_is_full(monkeypatch):
    samples = [sample("a", 1.0), sample("b", 2.0)]
    size = 4 * 2 * 4
    reads = []
    monkeypatch.setattr(Sample, "load", lambda self: reads.append(self.name) or dict(self.bags))
    memory = BagMemory(limit=size)
    for _ in range(2):
        assert [memory.load(s)["20x"].patches[0, 0, 0].item() for s in samples] == [1.0, 2.0]
    assert reads == ["a", "b", "b"]


def test_memory_does_not_take_samples_of_two_cohorts_for_each_other():
    memory = BagMemory()
    assert memory.load(sample("slide 1", 1.0))["20x"].patches.unique().item() == 1.0
    assert memory.load(sample("slide 1", 2.0))["20x"].patches.unique().item() == 2.0


def test_check_reads_everything_and_shows_progress_unless_told_not_to(capsys):
    memory = BagMemory()
    memory.check([sample("a", 1.0)])
    assert "reading slides" in capsys.readouterr().err
    memory.check([sample("b", 1.0)], quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_class_that_the_task_does_not_know_is_refused(split):
    with pytest.raises(ValueError, match="'G4'"):
        Examples(split.train, Classification(["G2", "G3"]), "grading")


def test_a_label_that_nobody_has_is_refused():
    cohort = Cohort((sample("a", 1.0),), pd.DataFrame({"grade": [None]}, index=["A"]))
    with pytest.raises(ValueError, match="at least one patient with grade, got none"):
        Examples(cohort, Classification(["G2", "G3"]), "grading")
