import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from disentangled_mil import Grid
from disentangled_mil._colors import CLASSES, rgb
from disentangled_mil.report.maps import prototype_map

NAMES = ("tumor", "tme")


@pytest.fixture
def grid() -> Grid:
    """Three patches of four on a 2 x 2 grid, and padding."""
    cells = torch.tensor([[[0, 0], [1, 0], [1, 1], [0, 0]]])
    return Grid.from_coords(cells, mask=torch.tensor([[True, True, True, False]]), step=1)


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: pictures, titles, legend."""
    seen = {"pictures": [], "titles": [], "legend": []}
    show, title, legend = Axes.imshow, Axes.set_title, Figure.legend

    def imshow(self, picture, **options):
        seen["pictures"].append(picture)
        return show(self, picture, **options)

    def set_title(self, text, **options):
        seen["titles"].append(text)
        return title(self, text, **options)

    def figure_legend(self, handles, **options):
        seen["legend"] = [(handle.get_label(), handle.get_facecolor()[:3]) for handle in handles]
        return legend(self, handles=handles, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    monkeypatch.setattr(Axes, "set_title", set_title)
    monkeypatch.setattr(Figure, "legend", lambda self, *, handles, **options: figure_legend(self, handles, **options))
    return seen


def color(number: int) -> list[float]:
    return [value / 255 for value in rgb(CLASSES[number])]


def test_patches_are_drawn_where_they_lie_in_the_colors_of_the_legend(grid, drawn, tmp_path):
    truth, assignment = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, -1])
    prototype_map(tmp_path / "map.png", grid, truth, assignment, subspaces=NAMES, title="slide")
    white = [1.0, 1.0, 1.0]
    left, right = drawn["pictures"]
    np.testing.assert_allclose(left, [[color(0), color(1)], [white, color(1)]])
    np.testing.assert_allclose(right, [[color(0), color(0)], [white, color(1)]])
    assert drawn["titles"] == ["true regions", "student's prototypes (67% of patches agree)"]
    assert [name for name, _ in drawn["legend"]] == ["tumor", "tme"]
    for number, (_, shown) in enumerate(drawn["legend"]):
        np.testing.assert_allclose(shown, color(number))


@pytest.mark.parametrize("name", ["map.png", "map", "map.svg"])
def test_the_picture_is_written_whole_in_the_format_of_its_suffix(grid, tmp_path, name):
    labels = torch.tensor([0, 1, 1, -1])
    prototype_map(str(tmp_path / name), grid, labels, labels, subspaces=NAMES, title="slide")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "map.svg":
        assert "<svg" in (tmp_path / name).read_text()
    else:
        picture = imread(tmp_path / name, format="png")
        assert picture.shape[0] > 300
        assert picture.shape[1] > 600


def test_an_unknown_format_leaves_no_file(grid, tmp_path):
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="'doc' is not supported"):
        prototype_map(tmp_path / "map.doc", grid, labels, labels, subspaces=NAMES, title="slide")
    assert not list(tmp_path.iterdir())


def test_shapes_and_number_of_subspaces_are_checked(grid, tmp_path):
    path, labels = tmp_path / "map.png", torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^truth must have shape \[N\] = \[4\], got \[3\]$"):
        prototype_map(path, grid, labels[:3], labels, subspaces=NAMES, title="")
    with pytest.raises(ValueError, match=r"^assignment must have shape \[N\] = \[4\], got \[1, 4\]$"):
        prototype_map(path, grid, labels, labels[None], subspaces=NAMES, title="")
    with pytest.raises(ValueError, match=r"^subspaces must be at most 6, got 7$"):
        prototype_map(path, grid, labels, labels, subspaces="abcdefg", title="")
    with pytest.raises(ValueError, match=r"^grid\.mask must have shape \[1, N\]"):
        prototype_map(path, Grid.square([4, 4]), labels, labels, subspaces=NAMES, title="")
