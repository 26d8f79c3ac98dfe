"""Which tiles of a slide are read where a bag has a largest number of them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...bags import spread_rows, widening
from ._stored import Array, StoredSlide
from ._values import as_coords
from .facts import slide_source
from .source import SlideError


class Chosen(NamedTuple):
    """Tiles that are read.

    Attributes:
        rows: rows of the tiles, ascending.
        widening: factor by which a cell of the grid grows, so that cells are as full as if all tiles were read.
    """

    rows: NDArray[np.int64]
    widening: float = 1.0


class Choice(NamedTuple):
    """Which tiles of a slide are read."""

    drop_augmented: bool
    most: int | None
    seed: int

    def of(self, slide: StoredSlide, places: Array | None) -> Chosen:
        """The chosen tiles of a slide, with their coordinates or None."""
        kept = np.arange(slide.source.tokens)
        if self.drop_augmented and slide.augmented is not None:
            kept = kept[~slide.augmented()]
            if not len(kept):
                raise SlideError(
                    f"{slide.source.files[0]}: a slide must hold at least one patch, got only augmented ones"
                )
        if self.most is None or len(kept) <= self.most:
            return Chosen(kept)
        # Python shows equal warnings once, so that a cohort does not fill the screen.
        warnings.warn(
            "slides with more tiles than max_tokens are read in part, spread evenly over the tissue", stacklevel=4
        )
        coords = None if places is None else as_coords(places[kept])
        chosen = spread_rows(len(kept), self.most, coords, self.seed).numpy()
        return Chosen(kept[chosen], widening(len(kept), len(chosen)))


def share_tiles(files: Sequence[Path], most: int | None, features: str | None, coords: str | None) -> list[int | None]:
    """How many tiles of every slide are kept, in proportion; None for all."""
    if most is None:
        return [None] * len(files)
    tokens = [slide_source(path, features=features, coords=coords, as_set=True).tokens for path in files]
    total = sum(tokens)
    if total <= most:
        return [None] * len(tokens)
    ends = np.cumsum([0, *tokens]) * most // total
    return [int(share) for share in np.diff(ends)]
