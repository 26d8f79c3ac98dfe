"""Widths of tiles of one slide, compared between its magnifications, to notice swapped folders.

Widths come from metadata, else from coordinates. Slides are compared by the ratios of their widths only, because their
pixels differ in size.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

from ..bags import Bag
from ._samples import StoredBag
from .slides import slide_name
from .slides.tile_size import TileSide, tile_side

_SAMPLES = 15  # whose slides give the usual ratio, as their median
_FACTOR = 1.5  # between 1 and the 2 by which neighboring magnifications differ


def sides_of_slides(bags: Mapping[str, Bag | StoredBag]) -> Iterator[dict[str, TileSide]]:
    """The sides of tiles of every slide in a sample.

    Coordinates are read only of bags of a single slide that keep them and have no step. Files of one slide have
    the same name at all magnifications.

    Args:
        bags: bag of every magnification.

    Yields:
        Sides by magnification in one unit, for every slide with at least two known ones.
    """
    slides: dict[str, dict[str, TileSide]] = {}
    stored = {name: bag for name, bag in bags.items() if isinstance(bag, StoredBag)}
    if len(stored) < 2:
        return
    alone = {name: bag.as_set or bag.step is not None or len(bag.paths) > 1 for name, bag in stored.items()}
    for name, bag in stored.items():
        for path in map(Path, bag.paths):
            side = tile_side(path, features=bag.features, coords=bag.coords, metadata_alone=alone[name])
            if side is not None:
                slides.setdefault(slide_name(path.name), {})[name] = side
    for sides in slides.values():
        if len({side.is_stride for side in sides.values()}) > 1:
            # Where tiles overlap, a side in the metadata is wider than a stride, so strides are compared.
            strides = {
                name: tile_side(
                    side.path,
                    features=stored[name].features,
                    coords=stored[name].coords,
                    metadata_alone=alone[name],
                    stride_alone=True,
                )
                for name, side in sides.items()
            }
            sides = {name: side for name, side in strides.items() if side is not None}
        if len(sides) > 1 and len({side.unit for side in sides.values()}) == 1:
            yield sides


def usual_ratios(samples: Iterable[Mapping[str, Bag | StoredBag]]) -> dict[str, float]:
    """The sides of tiles relative to the smallest of the same slide: the median of the first slides.

    Args:
        samples: bags of samples by magnification.

    Returns:
        Ratio by magnification, of those that are known.
    """
    found = [sides for bags in islice(samples, _SAMPLES) for sides in sides_of_slides(bags)]
    names = max((tuple(sides) for sides in found), key=len, default=())
    alike = [sides for sides in found if tuple(sides) == names]
    return {
        name: median(each[name].side / min(side.side for side in each.values()) for each in alike) for name in names
    }


def other_ratio(bags: Mapping[str, Bag | StoredBag], known: Mapping[str, float]) -> str | None:
    """The error about the first two magnifications whose ratio of widths differs from the known one, or None.

    Args:
        bags: bag of every magnification.
        known: ratios of :func:`usual_ratios`.

    Returns:
        A requirement and what came, or None.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is refused.
    """
    if len(known) < 2:
        return None
    for sides in sides_of_slides(bags):
        for first, second in pairwise(name for name in sides if name in known):
            ratio, usual = sides[first].side / sides[second].side, known[first] / known[second]
            if not usual / _FACTOR < ratio < usual * _FACTOR:
                return (
                    f"{sides[first].path}: tiles must be {usual:.3g} times as wide as those of {sides[second].path}, "
                    f"as in training at {first} and {second}, got {ratio:.3g} times: are the folders swapped?"
                )
    return None


def smaller_tiles(sides: Mapping[str, TileSide], ordered: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The neighboring magnifications whose lower one has clearly smaller tiles.

    Args:
        sides: sides of the tiles of a slide.
        ordered: magnifications from low to high.

    Yields:
        The lower and the higher magnification.
    """
    for low, high in pairwise(name for name in ordered if name in sides):
        if sides[low].side * _FACTOR < sides[high].side:
            yield low, high
