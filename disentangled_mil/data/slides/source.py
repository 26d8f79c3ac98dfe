"""What the files of a slide say about themselves."""

from pathlib import Path
from typing import NamedTuple

from ..._errors import FileError

_FACTOR = 1.25  # Scanners of one nominal magnification differ by less, neighboring magnifications by more.


class SlideError(FileError):
    """A slide's file is refused; the message names the file, the reason and, where there is one, a remedy."""


class SlideSource(NamedTuple):
    """What the files of a slide, or of all slides of a patient, say about themselves. None where they do not say it.

    Attributes:
        files: files that are read as one bag.
        writer: layout of the files: ``"CLAM"``, ``"TRIDENT"``, ``"STAMP"``, ``"AnnData"``, ``"released method"``,
            ``"tensor"``, or ``"HDF5"`` for features without a mark of their writer.
        tokens: number of stored tiles.
        width: numbers per tile; 0 if an empty slide does not say it.
        placed: flag, True if tiles have coordinates.
        encoder: name of the encoder.
        magnification: objective magnification of the tiles.
        mpp: micrometers per pixel of the tiles.
        tile: side of a tile in the unit of the coordinates.
        unit: unit of the coordinates: ``"level-0 pixels"``, ``"micrometers"`` or ``"tile pixels"``.
        unit_um: micrometers per unit of the coordinates; that of the scanner's nominal magnification, where only this
            is known.
        augmented: number of the tiles that are augmented copies of others.

    Example:
        >>> from disentangled_mil.data.slides import SlideSource
        >>> print(SlideSource((), "STAMP", 900, 1536, True, encoder="uni2", mpp=0.5, tile=112.0, unit="micrometers"))
        STAMP: 900 tiles of uni2 (width 1536), 0.5 micrometers per pixel, tile of 112 micrometers
    """

    files: tuple[Path, ...]
    writer: str
    tokens: int
    width: int
    placed: bool
    encoder: str | None = None
    magnification: float | None = None
    mpp: float | None = None
    tile: float | None = None
    unit: str | None = None
    unit_um: float | None = None
    augmented: int = 0

    def __str__(self) -> str:
        encoder, scale, place = self._words()
        some = f", {self.augmented} tiles are augmented copies" if self.augmented else ""
        return f"{self.writer}: {self.tokens} tiles of {encoder} (width {self.width}), {scale}, {place}{some}"

    @property
    def summary(self) -> str:
        """All but the numbers of tiles and features, which many slides have in common."""
        return f"{self.writer}, {', '.join(self._words())}"

    def _words(self) -> tuple[str, str, str]:
        """Encoder, magnification and place of the tiles in words."""
        scale = "unknown magnification"
        if self.magnification is not None:
            scale = f"{self.magnification:g}x"
        elif self.mpp is not None:
            scale = f"{self.mpp:g} micrometers per pixel"
        place = "no coordinates"
        if self.placed:
            place = "coordinates" if self.tile is None else f"tile of {self.tile:g} {self.unit or 'units'}"
        return self.encoder or "an unknown encoder", scale, place


def difference(source: SlideSource, encoder: str | None, magnification: float | None, mpp: float | None) -> str | None:
    """The first of encoder and magnification in which a source differs from a known one; what is unknown never differs.

    Args:
        source: source of a slide.
        encoder: name of the encoder; upper and lower case are equal.
        magnification: magnification; a quarter more or less is equal, because scanners differ.
        mpp: micrometers per pixel, from which an unknown magnification is known: 1 is 10x.

    Returns:
        A requirement and what came, or None.

    Example:
        >>> from disentangled_mil.data.slides import SlideSource, difference
        >>> difference(SlideSource((), "TRIDENT", 5, 8, True, "uni_v1", 20.0), "UNI_v1", None, 1.0)
        'must have tiles at 10x, got 20x'
    """
    if source.encoder and encoder and source.encoder.casefold() != encoder.casefold():
        return f"must have features of the encoder {encoder!r}, got {source.encoder!r}"
    ours, theirs = _magnification(source.magnification, source.mpp), _magnification(magnification, mpp)
    if ours and theirs and not 1 / _FACTOR <= ours / theirs <= _FACTOR:
        return f"must have tiles at {theirs:.3g}x, got {ours:.3g}x"
    return None


def _magnification(magnification: float | None, mpp: float | None) -> float | None:
    """The magnification, from micrometers per pixel where it is not stated."""
    return magnification if magnification or not mpp else 10 / mpp  # 1 is 10x
