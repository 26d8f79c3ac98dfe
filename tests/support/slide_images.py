"""Small slide images: tiled TIFF pyramids, as OpenSlide reads them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

PINK = (200, 90, 150)
GLASS = (246, 244, 247)


def write_slide(path: Path, pixels: Pixels, *, mpp: float | None = 0.5, levels: tuple[int, ...] = ()) -> Path:
    """A slide without compression; each further level is the mean of squares of level 0 of this side."""
    import tifffile

    per_cm = None if mpp is None else (1e4 / mpp, 1e4 / mpp)
    with tifffile.TiffWriter(path) as file:
        for level in (1, *levels):
            options = {"photometric": "rgb", "tile": (64, 64), "subfiletype": int(level > 1), "metadata": None}
            unit = {} if per_cm is None else {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
            file.write(averaged(pixels, level), **options, **unit)
    return path


def averaged(pixels: Pixels, side: int) -> Pixels:
    """Means of squares; what is left at the right and lower side is cut off."""
    rows, columns = (size // side for size in pixels.shape[:2])
    squares = pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return squares.mean(axis=(1, 3)).round().astype(np.uint8)


def speckled(height: int, width: int, seed: int = 0) -> Pixels:
    """Tissue everywhere, with soft structures, so that neighboring magnifications differ little."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(-40, 40, size=(height // 16 + 1, width // 16 + 1, 3))
    soft = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
    return np.clip(np.array(PINK) + soft, 0, 255).astype(np.uint8)


def glass(height: int, width: int) -> Pixels:
    """A slide without tissue."""
    return np.full((height, width, 3), GLASS, dtype=np.uint8)
