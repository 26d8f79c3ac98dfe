"""Small pictures of slides behind their maps. Needs the extra ``wsi``."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._checks import as_number
from .._errors import FileError
from .._extras import naming_extra

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
    with naming_extra("wsi"):
        import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            picture = np.asarray(slide.get_thumbnail((_SIDE, _SIDE)).convert("RGB"))
            scale = slide.dimensions[0] / picture.shape[1]
            mpp = as_number(slide.properties.get(openslide.PROPERTY_NAME_MPP_X))
    except openslide.OpenSlideError as error:
        raise FileError(f"{path}: must be a slide that OpenSlide reads: {error}", path) from error
    return Thumbnail(picture, scale, mpp if mpp > 0 else None)
