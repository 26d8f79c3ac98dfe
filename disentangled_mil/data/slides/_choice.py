"""Which tiles of a slide are read where a bag has a largest number of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._checks import check_count
from ...bags import spread_rows, widening
from ._opening import as_paths, open_slide
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
        kept = self._kept(slide)
        if self.most is None or len(kept) <= self.most:
            return Chosen(kept)
        if self.most == 0:  # of a small slide beside large ones
            return Chosen(kept[:0])
        coords = None if places is None else as_coords(places[kept])
        chosen = spread_rows(len(kept), self.most, coords, self.seed).numpy()
        return Chosen(kept[chosen], widening(len(kept), len(chosen)))

    def is_partly(self, slide: StoredSlide) -> bool:
        """Whether the slide has more tiles than the largest number; coordinates are not read."""
        return self.most is not None and slide.source.tokens > 0 and len(self._kept(slide)) > self.most

    def _kept(self, slide: StoredSlide) -> NDArray[np.int64]:
        """The tiles among which the choice is made."""
        kept = np.arange(slide.source.tokens)
        if self.drop_augmented and slide.augmented is not None:
            kept = kept[~slide.augmented()]
            if not len(kept):
                raise SlideError(
                    f"{slide.source.files[0]}: a slide must hold at least one patch, got only augmented ones"
                )
        return kept


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


def reads_part(
    files: Sequence[str | Path],
    most: int | None,
    *,
    drop_augmented: bool = False,
    features: str | None = None,
    coords: str | None = None,
) -> bool:
    """Whether :func:`read_bag` leaves tiles out, because there are more than the largest number.

    Features and coordinates are not read.

    Args:
        files: files of one bag, at least one.
        most: largest number of tiles, ``max_tokens`` of :func:`read_bag`.
        drop_augmented: flag that leaves out augmented tiles before.
        features: name of the features, see :func:`read_bag`.
        coords: name of the coordinates, see :func:`read_bag`.

    Returns:
        Whether tiles are left out.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``files`` is a single path, or ``most`` no integer.
        ValueError: a file is no slide, there is none, or ``most`` is below 1.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import reads_part, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(5, 8))
        >>> reads_part([path], 4), reads_part([path], 5)
        (True, False)
    """
    if isinstance(files, (str, Path)):
        raise TypeError(f"files must be a sequence of paths, got the path {str(files)!r}")
    paths = as_paths(files)
    if most is None:
        return False
    check_count("most", most)
    for path, share in zip(paths, share_tiles(paths, most, features, coords), strict=True):
        with open_slide(path, features, coords, as_set=True) as slide:
            if Choice(drop_augmented, share, 0).is_partly(slide):
                return True
    return False
