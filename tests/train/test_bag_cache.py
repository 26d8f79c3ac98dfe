import pytest
import torch

from disentangled_mil import Bag, Grid
from disentangled_mil.data.cohort import Sample
from disentangled_mil.train.bag_cache import BagCache


def sample(name: str, value: float, patient: str = "A") -> Sample:
    return Sample(name, patient, {"20x": Bag.from_slide(torch.full((4, 2), value))})


def test_a_cohort_with_coordinates_for_some_bags_only_is_refused_by_name():
    placed = Sample("A", "A", {"20x": Bag(torch.ones(1, 4, 2), Grid.square(4))})
    without = Sample("B", "B", {"20x": Bag(torch.ones(1, 4, 2))})
    BagCache().check([placed, placed], quiet=True)
    message = "^20x bags must all have coordinates or all have none, got 'B' without and 'A' with them$"
    for samples in ([placed, without], [without, placed]):
        with pytest.raises(ValueError, match=message):
            BagCache().check(samples, quiet=True)


def test_memory_reads_a_sample_once_until_it_is_full(monkeypatch):
    samples = [sample("a", 1.0), sample("b", 2.0)]
    size = samples[0].load()["20x"].nbytes
    reads = []
    monkeypatch.setattr(Sample, "load", lambda self: reads.append(self.name) or dict(self.bags))
    cache = BagCache(limit=size)
    for _ in range(2):
        assert [cache.load(s)["20x"].patches[0, 0, 0].item() for s in samples] == [1.0, 2.0]
    assert reads == ["a", "b", "b"]
    assert [cache.facts(s).tokens for s in samples] == [{"20x": 4}, {"20x": 4}]
    assert reads == ["a", "b", "b"]  # facts are kept


def test_memory_does_not_take_samples_of_two_cohorts_for_each_other():
    cache = BagCache()
    assert cache.load(sample("slide 1", 1.0))["20x"].patches.unique().item() == 1.0
    assert cache.load(sample("slide 1", 2.0))["20x"].patches.unique().item() == 2.0


def test_check_reads_everything_and_shows_progress_unless_told_not_to(capsys):
    cache = BagCache()
    cache.check([sample("a", 1.0)])
    assert "reading slides" in capsys.readouterr().err
    cache.check([sample("b", 1.0)], quiet=True)
    assert capsys.readouterr() == ("", "")
