"""Labeled slides in folders as a data set of PyTorch."""

import h5py
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from disentangled_mil.data.slide_dataset import SlideDataset
from disentangled_mil.data.slide_reading import SlideReading, TileFacts
from disentangled_mil.data.slides import write_bag


@pytest.fixture
def folders(tmp_path):
    """Three slides of 2 to 4 tiles, with coordinates at 20x only."""
    for magnification in ("10x", "20x"):
        (tmp_path / magnification).mkdir()
        for number, name in enumerate(("a", "b", "c"), start=2):
            place = {"coords": 10 * torch.arange(2 * number).view(number, 2), "step": 10, "encoder": "uni"}
            write_bag(
                tmp_path / magnification / f"{name}.h5",
                torch.full((number, 3), float(number)),
                **place if magnification == "20x" else {},
            )
    return {magnification: tmp_path / magnification for magnification in ("10x", "20x")}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["low", "high", "low"], ("high", "low")),
        ([3, 2, 3], (2, 3)),
        ([("II", 1), ("I", 2), ("II", 1)], (("I", 2), ("II", 1))),
        ([True, "no", True], (True, "no")),
    ],
)
def test_labels_of_any_hashable_type_become_indices(folders, labels, classes):
    dataset = SlideDataset(folders, dict(zip("abc", labels, strict=True)))
    assert dataset.classes == classes
    assert [dataset.classes[target] for _, target in dataset] == labels


def test_a_loader_gives_padded_batches_of_every_magnification(folders):
    dataset = SlideDataset(folders, pd.Series({"c.svs": 1, "a.svs": 0}))
    bags, target = next(iter(DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)))
    assert target.tolist() == [1, 0]
    assert list(bags) == ["10x", "20x"]
    assert bags["20x"].mask.sum(1).tolist() == [4, 2]
    assert bags["20x"].patches[1, 0].tolist() == [2.0, 2.0, 2.0]


def test_the_reading_for_a_checkpoint_is_that_of_the_files(folders):
    dataset = SlideDataset(folders, {"a": 0, "b": 1}, max_tokens=3)
    tiles = {"10x": TileFacts(width=3), "20x": TileFacts("uni", 3)}
    assert dataset.reading == SlideReading(sets=("10x",), max_tokens={"10x": 3, "20x": 3}, tiles=tiles)
    assert dataset.width == 3


def test_names_of_features_and_coordinates_in_files_reach_every_bag(tmp_path):
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["embeddings"] = torch.ones(3, 8).numpy()
            file["places"] = [[0, 0], [448, 0], [448, 448]]
    dataset = SlideDataset({"20x": tmp_path}, {"a": 0, "b": 1}, features="embeddings", coords="places")
    assert dataset.width == 8
    assert dataset[0][0]["20x"].grid.shapes == ((2, 2),)
    assert (dataset.reading.features, dataset.reading.coords) == ({"20x": "embeddings"}, {"20x": "places"})
    with pytest.raises(TypeError, match="features must be a name or None, got int"):
        SlideDataset({"20x": tmp_path}, {"a": 0}, features=3)


@pytest.mark.parametrize(
    ("labels", "classes", "error", "message"),
    [
        ({}, None, ValueError, "folders and labels must not be empty, got 2 folders, 0 labels"),
        ({"a": 1, "a.svs": 2}, None, ValueError, "labels must name every slide once, got 'a' twice"),
        ({"a": float("nan")}, None, ValueError, "labels must have a value for every slide, got nan for 'a'"),
        ({"a": 1}, [2, 3], ValueError, r"labels must be among \[2, 3\], got 1"),
        ({"a": 1, "z": 2}, None, FileNotFoundError, "10x: must hold every slide, but lacks z"),
    ],
)
def test_what_does_not_fit_is_refused(folders, labels, classes, error, message):
    with pytest.raises(error, match=message):
        SlideDataset(folders, labels, classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folders": "slides"}, "folders must be a mapping from names, got str"),
        ({"labels": [1, 2]}, "labels must be a mapping or a series from names of slides, got list"),
        (
            {"labels": pd.DataFrame({"grade": [1]}, index=["a"])},
            r"labels must be one column of a table, such as table\['label'\], got a DataFrame",
        ),
        ({"labels": {"a": ["low"]}}, "label of 'a' must be hashable, got list"),
        ({"max_tokens": "400"}, "max_tokens must be an integer, got str"),
    ],
)
def test_arguments_of_other_types_are_named(folders, options, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        SlideDataset(**{"folders": folders, "labels": {"a": 1}, **options})


def test_a_batch_is_of_items(folders):
    dataset = SlideDataset(folders, {"a": 1, "b": 2})
    for items, kinds in ((dataset[0], "a tuple of dict, int"), (1, "int"), ([dataset[0][0]], "a list of dict")):
        with pytest.raises(TypeError, match=rf"^items must be a sequence of items \(bags, target\) .*, got {kinds}$"):
            dataset.collate(items)
