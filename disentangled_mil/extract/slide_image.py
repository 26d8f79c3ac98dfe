"""Pixels of slide images at any scale, read by OpenSlide. Needs the extra ``wsi``."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._checks import as_number
from .._errors import FileError, reading
from .._extras import naming_extra
from .tiles import tile_side
from .tissue import tissue_mask

_MASK_MPP = 8.0  # micrometers per pixel of the mask of tissue; a tile of 20x has 14 x 14 of these pixels
_EQUAL_SCALES = 1.01  # Levels have whole numbers of pixels, so that of 1/4 may be a little coarser.
_BLOCK = 2048  # pixels of a level that are read at once, in each direction


class Tissue(NamedTuple):
    """Where a slide shows tissue.

    Attributes:
        mask: mask of the tissue [H, W] (True = tissue).
        scale: level-0 pixels per pixel of the mask.
    """

    mask: NDArray[np.bool_]
    scale: float


class SlideImage:
    """An open slide image, and the size of its pixels.

    Several threads may read one image. Transparent pixels, which the scanner left out, become white.

    Args:
        path: file of the slide, such as ``.svs`` or ``.ndpi``.
        mpp: micrometers per pixel of level 0; by default those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the extra is not installed.
        ValueError: the file is no slide that OpenSlide reads, or ``mpp`` is not positive and finite.

    Attributes:
        path: file of the slide.
        size: width and height of level 0 in pixels.
        mpp: micrometers per pixel of level 0; None where neither file nor argument states them.

    Example:
        >>> from disentangled_mil.extract import SlideImage
        >>> with SlideImage("slide.svs") as image:  # doctest: +SKIP
        ...     tile = image.read(896, 448, 448, 448, (224, 224))
    """

    def __init__(self, path: str | Path, *, mpp: float | None = None) -> None:
        with naming_extra("wsi"):
            import openslide
        self.path = Path(path)
        check_mpp(mpp)
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        self._failure = openslide.OpenSlideError
        with self._naming():
            self._slide = openslide.OpenSlide(self.path)
        self.size: tuple[int, int] = self._slide.dimensions
        stated = as_number(self._slide.properties.get(openslide.PROPERTY_NAME_MPP_X))
        self.mpp = mpp if mpp is not None else stated if 0 < stated < float("inf") else None

    def __enter__(self) -> "SlideImage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slide.close()

    def read(self, left: float, top: float, width: float, height: float, pixels: tuple[int, int]) -> NDArray[np.uint8]:
        """The colors of a rectangle of the slide.

        They are read from the coarsest level that is at least as fine as the result, and resampled by a bicubic filter
        with antialiasing. A rectangle that fits the pixels of a level is not resampled.

        Args:
            left: left side in level-0 pixels.
            top: upper side in level-0 pixels.
            width: width in level-0 pixels.
            height: height in level-0 pixels.
            pixels: width and height of the result in pixels.

        Returns:
            Colors [height, width, 3].

        Raises:
            ValueError: the file is damaged here.
        """
        from PIL import Image

        level, scale = self._level(width / pixels[0])
        columns, rows = self._slide.level_dimensions[level]
        first = floor(left / scale), floor(top / scale)
        last = min(columns, ceil((left + width) / scale)), min(rows, ceil((top + height) / scale))
        extent = max(1, last[0] - first[0]), max(1, last[1] - first[1])
        with self._naming():
            region = self._slide.read_region((round(first[0] * scale), round(first[1] * scale)), level, extent)
        picture = Image.new("RGB", extent, "white")
        picture.paste(region, mask=region.getchannel("A"))
        box = left / scale - first[0], top / scale - first[1]
        ends = min(extent[0], box[0] + width / scale), min(extent[1], box[1] + height / scale)
        return np.asarray(picture.resize(pixels, Image.Resampling.BICUBIC, box=(*box, *ends)))

    def overview(self, scale: float) -> NDArray[np.uint8]:
        """The whole slide as a small picture, which is read block by block.

        Args:
            scale: level-0 pixels per pixel of the picture. What is left at the right and lower side is cut off.

        Returns:
            Colors [H, W, 3].

        Raises:
            ValueError: the file is damaged.
        """
        columns, rows = (max(1, floor(side / scale)) for side in self.size)
        picture = np.empty((rows, columns, 3), dtype=np.uint8)
        step = max(1, floor(_BLOCK * self._level(scale)[1] / scale))
        for top in range(0, rows, step):
            for left in range(0, columns, step):
                block = picture[top : top + step, left : left + step]
                height, width = block.shape[:2]
                block[:] = self.read(left * scale, top * scale, width * scale, height * scale, (width, height))
        return picture

    @property
    def known_mpp(self) -> float:
        """Micrometers per pixel of level 0, which must be known; the ValueError names the remedy."""
        if self.mpp is None:
            raise FileError(
                f"{self.path}: must state micrometers per pixel, but does not; give them by mpp (--mpp)", self.path
            )
        return self.mpp

    def tile_side(self, magnification: float) -> int:
        """Side of a tile of 224 pixels in level-0 pixels, see :func:`~disentangled_mil.extract.tile_side`.

        Args:
            magnification: objective magnification of the tile.

        Returns:
            The side.

        Raises:
            ValueError: micrometers per pixel are not known, or the scan does not hold the magnification.
        """
        mpp = self.known_mpp
        with self._naming():
            return tile_side(magnification, mpp)

    @cached_property
    def tissue(self) -> Tissue:
        """Where there is tissue, at 8 micrometers per pixel; see :func:`tissue_mask`."""
        scale = max(1.0, _MASK_MPP / self.known_mpp)
        return Tissue(tissue_mask(self.overview(scale)), scale)

    def _level(self, scale: float) -> tuple[int, float]:
        """The coarsest level that is at least as fine as a scale, and its own scale."""
        level = self._slide.get_best_level_for_downsample(_EQUAL_SCALES * scale)
        return level, self._slide.level_downsamples[level]

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors."""
        try:
            with reading(self.path):
                yield
        except self._failure as error:
            raise FileError(f"{self.path}: must be a slide that OpenSlide reads: {error}", self.path) from error


def check_mpp(mpp: float | None) -> None:
    """Check micrometers per pixel, which may be unknown."""
    if mpp is not None and not 0 < mpp < float("inf"):
        raise ValueError(f"mpp must be positive and finite, got {mpp}")
