"""Slide images to features of tiles, as ``read_bag`` reads them. Needs the extras ``train`` and ``wsi``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .encoder import Encoder, encode_tiles, load_encoder
    from .extract_slides import Extraction, extract_slides, slide_images
    from .extractor import Extractor, SlideFeatures
    from .slide_image import SlideImage, Tissue
    from .tiles import TILE, tile_corners, tile_side
    from .tissue import tissue_mask, tissue_share

__all__ = [
    "TILE",
    "Encoder",
    "Extraction",
    "Extractor",
    "SlideFeatures",
    "SlideImage",
    "Tissue",
    "encode_tiles",
    "extract_slides",
    "load_encoder",
    "slide_images",
    "tile_corners",
    "tile_side",
    "tissue_mask",
    "tissue_share",
]
