"""Draw ``_generated/map_of_a_slide.png``, and its GeoJSON: prototypes and attention of a student on a planted slide."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from disentangled_mil.data.planted import planted_cohort
from disentangled_mil.explain import TileMap, combine_maps, draw_map, student_view, write_geojson
from disentangled_mil.train import Split, load_model, run_split
from disentangled_mil.train.demo import DEMO_OPTIONS

TILE = {"10x": 896, "20x": 448}  # level-0 pixels


def draw(path: Path) -> None:
    """Train a student for a moment, and draw a slide that it did not see."""
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    cohort = planted_cohort(61, seed=21, grid=(12, 10)).cohort
    *training, shown = cohort.patients
    with TemporaryDirectory() as folder:
        split = Split(cohort.subset(training), {"shown": cohort.subset([shown])})
        options = replace(DEMO_OPTIONS, epochs=4, linear=0.0)
        run_split(split, "diagnosis", options, Path(folder), models=("student",), quiet=True)
        student = load_model(Path(folder) / "student").model
    bags = cohort.subset([shown]).samples[0].load()
    with torch.no_grad():
        branches = student(bags).branches
    maps = {}
    for name, bag in bags.items():
        corners = bag.grid.cells[0] * TILE[name]
        size = torch.full((len(corners),), TILE[name])
        columns = student_view(branches[name], student.subspaces)
        classes = student.subspaces
        maps[name] = TileMap(corners, size, columns, classes, unit="level-0 pixels", unit_um=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = combine_maps(maps)
    draw_map(path, tiles, ["attention"], title="A simulated slide at 10x and 20x")
    write_geojson(path.with_suffix(".geojson"), tiles)


if __name__ == "__main__":
    draw(Path(__file__).parent / "_generated" / "map_of_a_slide.png")
