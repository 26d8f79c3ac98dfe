"""Write a saved student as an ONNX file."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_overwrite

HELP = "a saved student as an ONNX file, which predicts without PyTorch"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        type=Path,
        help="run folder with one student or a folder in it, such as fold0; the checkpoint of a student; or a folder "
        "of save_pretrained",
    )
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument(
        "--sets", action="store_true", help="for bags without coordinates, if the checkpoint does not say so"
    )
    add_overwrite(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...deploy import export_onnx

    path = export_onnx(options.model, options.out, sets=options.sets, overwrite=options.overwrite)
    print(f"student -> {path}")
