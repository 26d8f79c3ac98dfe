"""Small pictures of slides behind their maps. Needs the extra ``wsi``."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..extract import SlideImage

_SIDE = 1500  # pixels of the longer side


class Thumbnail(NamedTuple):
    """A small picture of a slide.

    Attributes:
        pixels: colors [H, W, 3].
        scale: level-0 pixels per pixel.
        mpp: micrometers per level-0 pixel; None where the file does not say it.
    """

    pixels: NDArray[np.uint8]
    scale: float
    mpp: float | None


def read_thumbnail(path: str | Path) -> Thumbnail:
    """Read a small picture of a slide with OpenSlide.

    Args:
        path: file of the slide, such as ``.svs`` or ``.ndpi``.

    Returns:
        A picture of at most 1,500 pixels on its longer side.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        FileError: the file is no slide that OpenSlide reads.
    """
    with SlideImage(path) as image:
        scale = max(1.0, max(image.size) / _SIDE)
        return Thumbnail(image.overview(scale), scale, image.mpp)
