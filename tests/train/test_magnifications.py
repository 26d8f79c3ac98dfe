"""Any number of magnifications whose tiles do not match, from training to predictions."""

from dataclasses import replace

import pytest
import torch

from disentangled_mil import Bag
from disentangled_mil.data.cohort import Cohort, Sample
from disentangled_mil.train.experiment import Split, run_split
from tests.support.training import OPTIONS, small_split


def with_magnifications(cohort: Cohort, tiles: dict[str, int]) -> Cohort:
    """The cohort with slides of growing size, from a number of tiles at each magnification."""
    generator = torch.Generator().manual_seed(1)

    def bag(count: int) -> Bag:
        cells = torch.randperm(400, generator=generator)[:count]
        coords = torch.stack([cells % 20, cells // 20], dim=1)
        return Bag.from_slide(torch.randn(count, 5, generator=generator), coords, step=1)

    samples = [
        Sample(sample.name, sample.patient, {name: bag(count + 3 * i) for name, count in tiles.items()})
        for i, sample in enumerate(cohort.samples)
    ]
    last = tuple(tiles)[-1]
    if len(tiles) > 1:
        samples[1] = replace(samples[1], bags={**samples[1].bags, last: Bag.empty(5, placed=True)})
    return replace(cohort, samples=tuple(samples), missing="allow")


@pytest.mark.parametrize("tiles", [{"20x": 30}, {"5x": 6, "10x": 12, "20x": 30}], ids=["one", "three"])
def test_models_train_and_predict_with_any_number_of_magnifications(tiles, tmp_path):
    split = small_split()
    train = with_magnifications(split.train, tiles)
    tests = {name: with_magnifications(cohort, tiles) for name, cohort in split.tests.items()}
    assert len(train.expression) < len(train.patients)  # some train the students only
    result = run_split(Split(train, tests), "grading", replace(OPTIONS, epochs=2), tmp_path, quiet=True)
    assert {"teacher", "student", "distilled"} <= set(result.metrics)
    assert result.predictions.filter(like="probability").notna().all(axis=None)
    log = (tmp_path / "teacher.csv").read_text().splitlines()[0].split(",")
    assert ("consistency" in log) is (len(tiles) > 1)
