"""Bags of the kidney cancers, made of their maps of tumor probability.

The script ``make_tile_bags.py`` beside the data turns a map into a bag with one token per tile, up to 28,506 tokens.
Here maps are pooled first, so that a token is 448 um or 896 um wide and a training takes minutes. Bags go to
``runs/tcga_kirc``, once.
"""

import runpy
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from disentangled_mil._files import replacing
from disentangled_mil.data import Cohort, read_cohort

_REPOSITORY = Path(__file__).parents[2]
_DATA = _REPOSITORY.parent / "shared" / "data"
BAGS = _REPOSITORY / "runs" / "tcga_kirc"
# Halvings of the map, and the nominal magnification that goes with them.
_SIZES = {"fine": (2, 5), "coarse": (3, 2.5)}
TUMOR = 0.3  # probability from which a tile counts as tumor, as in the script


@cache
def _script() -> dict[str, object]:
    return runpy.run_path(str(_DATA / "make_tile_bags.py"))


def cohort(description: Path) -> Cohort:
    """The cohort; its bags are made first if they are not there."""
    done = BAGS / "done"
    if not done.exists():
        maps = np.load(_DATA / "tcga_kirc" / "tilemaps.npz")
        for name in maps.files:
            for size, grid in pooled(maps[name]).items():
                halvings, magnification = _SIZES[size]
                with replacing(_made(BAGS / size / f"{name}.h5")) as temporary:
                    _script()["write_bag"](temporary, name, grid, 448 * 2**halvings, magnification)  # type: ignore[operator]
        done.touch()
    return read_cohort(description)


def pooled(tiles: NDArray[np.int16]) -> dict[str, NDArray[np.float64]]:
    """The map of tumor probability at both sizes; -1 where there is no tissue."""
    grids = {}
    for size, (halvings, _) in _SIZES.items():
        grid = tiles.astype(np.float64)
        for _ in range(halvings):
            grid = _script()["halve"](grid)  # type: ignore[operator]
        grids[size] = grid
    return grids


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
