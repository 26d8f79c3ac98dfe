"""Features of the tissue of a slide at one magnification."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._checks import check_choice, check_count, check_finite, check_interval
from .._read_ahead import read_ahead
from .encoder import Encoder, encode_tiles
from .slide_image import SlideImage
from .tiles import TILE, tile_corners
from .tissue import tissue_share


class SlideFeatures(NamedTuple):
    """Features of the tiles of a slide.

    Attributes:
        features: features [N, D].
        coords: upper left corners (x, y) of the tiles in level-0 pixels [N, 2].
        side: side of a tile in level-0 pixels.
    """

    features: Tensor
    coords: Tensor
    side: int


@dataclass(frozen=True)
class Extractor:
    """Encodes the tiles of a slide that show tissue.

    Tiles are 224 pixels wide and lie on a lattice without overlap from the slide's upper left corner. Those that reach
    out of the slide are left out. Beside the features, only the tiles of about three batches are in memory.

    Args:
        encoder: encoder; a module is moved to ``device``.
        min_tissue: least share of tissue in a tile; a tile without any is always left out.
        batch_size: number of tiles that are encoded at once.
        dtype: type of the features, float16 or float32.
        device: device of the encoder.
        readers: number of threads that read tiles.

    Raises:
        TypeError: a number has another type.
        ValueError: a number is out of range, or ``dtype`` is another type.

    Example:
        >>> from disentangled_mil.extract import Encoder, Extractor, SlideImage
        >>> extractor = Extractor(Encoder(lambda tiles: tiles.mean((2, 3)), "mean color"), min_tissue=0.5)
        >>> with SlideImage("slide.svs") as image:  # doctest: +SKIP
        ...     features, coords, side = extractor(image, 20)
    """

    encoder: Encoder
    min_tissue: float = 0.25
    batch_size: int = 64
    dtype: torch.dtype = torch.float16
    device: str | torch.device = "cpu"
    readers: int = 2

    def __post_init__(self) -> None:
        check_interval("min_tissue", self.min_tissue, 0, 1)
        check_count("batch_size", self.batch_size)
        check_count("readers", self.readers)
        check_choice("dtype", self.dtype, (torch.float16, torch.float32))
        if isinstance(self.encoder.model, nn.Module):
            self.encoder.model.to(self.device)

    def width(self) -> int:
        """The number of features per tile, which a black tile tells.

        Returns:
            The number.

        Raises:
            TypeError: the encoder returns no floating-point tensor.
            ValueError: the encoder returns another shape.
        """
        black = torch.zeros(1, TILE, TILE, 3, dtype=torch.uint8)
        return encode_tiles(self.encoder, black, device=self.device).shape[1]

    def __call__(
        self,
        image: SlideImage,
        magnification: float,
        *,
        on_batch: Callable[[int, int], None] = lambda tiles, total: None,
    ) -> SlideFeatures:
        """Encode a slide.

        Args:
            image: slide.
            magnification: objective magnification of the tiles, see :func:`tile_side`.
            on_batch: function that is told, after each batch, the number of its tiles and of all tiles.

        Returns:
            Features on the CPU; none where no tile shows tissue.

        Raises:
            TypeError: the encoder returns no floating-point tensor.
            ValueError: micrometers per pixel are not known, the scan does not hold the magnification, the file is
                damaged, or features have another shape, are not finite or exceed the range of ``dtype``.
        """
        side = image.tile_side(magnification)
        corners = tile_corners(image.size, side)
        shares = tissue_share(*image.tissue, corners, side)
        corners = corners[(shares >= self.min_tissue) & (shares > 0)]

        def read(corner: list[int]) -> NDArray[np.uint8]:
            return image.read(corner[0], corner[1], side, side, (TILE, TILE))

        features, start = torch.empty(len(corners), self.width(), dtype=self.dtype), 0
        # No thread may read from an image that is closed after an error.
        with closing(read_ahead(read, corners.tolist(), threads=self.readers, ahead=2 * self.batch_size)) as tiles:
            for batch in _batches(tiles, self.batch_size):
                features[start : start + len(batch)] = self._encode(image, batch)
                start += len(batch)
                on_batch(len(batch), len(corners))
        return SlideFeatures(features, corners, side)

    def _encode(self, image: SlideImage, tiles: Tensor) -> Tensor:
        """Features [B, D] of tiles, finite also in the type in which they are stored."""
        values = encode_tiles(self.encoder, tiles, device=self.device)
        check_finite(f"{image.path}: features of {self.encoder.name}", values)
        stored = values.to(self.dtype)
        if not stored.isfinite().all():
            largest = float(values.abs().max())
            raise ValueError(f"{image.path}: features must fit into {self.dtype}, got {largest:g}; use float32")
        return stored


def _batches(tiles: Iterator[NDArray[np.uint8]], size: int) -> Iterator[Tensor]:
    """Tiles [B, 224, 224, 3] in batches; the last one may be smaller."""
    while batch := list(islice(tiles, size)):
        yield torch.from_numpy(np.stack(batch))
