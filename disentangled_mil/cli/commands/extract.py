"""Turn slide images into features."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from ..values import device

HELP = "features of slide images, tile by tile, for the other commands"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("slides", nargs="+", type=Path, help="slide images such as .svs, and folders of them")
    parser.add_argument("--magnification", type=float, nargs="+", required=True, help="20 is 0.5 micrometers per pixel")
    parser.add_argument(
        "--encoder",
        required=True,
        help="timm:NAME, or MODULE:FACTORY of a function that returns a model from [B, 3, 224, 224] to [B, D]",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to: OUT/20x/SLIDE.h5")
    parser.add_argument("--weights", type=Path, help="file of weights for timm, instead of those that it downloads")
    parser.add_argument("--stage", type=int, help="feature map of timm to average; 3 is ResNet50's third stage")
    parser.add_argument("--mpp", type=float, help="micrometers per pixel of level 0 (default: from the image)")
    parser.add_argument("--min-tissue", type=float, default=0.25, help="least share of a tile (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="tiles that are encoded at once (default: 64)")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="(default: %(default)s)")
    parser.add_argument("--readers", type=int, default=2, help="threads that read tiles (default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="(default: %(default)s)")


def run(options: Namespace) -> int:
    """Run the command."""
    from ...extract import Extractor, extract_slides, load_encoder

    names = ("min_tissue", "batch_size", "device", "readers")
    given = {name: getattr(options, name) for name in names}
    try:
        encoder = load_encoder(options.encoder, weights=options.weights, stage=options.stage)
        extractor = Extractor(encoder, dtype=getattr(torch, options.dtype), **given)
        done = extract_slides(options.slides, options.magnification, extractor, options.out, mpp=options.mpp)
    except TypeError as error:  # The encoder is of the user.
        raise ValueError(str(error)) from error
    kept = f", {len(done.kept)} finished before are kept" if done.kept else ""
    many = "1 slide is" if len(done.failed) == 1 else f"{len(done.failed)} slides are"
    failed = f", {many} left out" if done.failed else ""
    print(f"{len(done.written)} files -> {options.out}{kept}{failed}")
    return 1 if done.failed else 0
