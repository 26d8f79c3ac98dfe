"""Slides as feature extractors write them: CLAM, TRIDENT, STAMP, AnnData and others, read as bags."""

from ._choice import reads_part
from ._opening import check_step
from .facts import slide_source
from .files import IMAGE_SUFFIXES, SUFFIXES, slide_files, slide_name
from .places import TilePlaces, check_places, tile_places
from .reading import SlideBag, read_bag
from .source import SlideError, SlideSource, difference
from .writing import write_bag

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES",
    "SlideBag",
    "SlideError",
    "SlideSource",
    "TilePlaces",
    "check_places",
    "check_step",
    "difference",
    "read_bag",
    "reads_part",
    "slide_files",
    "slide_name",
    "slide_source",
    "tile_places",
    "write_bag",
]
