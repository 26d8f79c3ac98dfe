"""Write the page about a finished run."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_overwrite

HELP = "one HTML page about a finished run; train and demo write it as well"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run folder)")
    parser.add_argument(
        "--maps",
        type=Path,
        help="folder of maps, the --out of explain (default: maps in the run folder and in those of its folds)",
    )
    add_overwrite(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...report import write_report

    print(f"report -> {write_report(options.folder, options.out, maps=options.maps, overwrite=options.overwrite)}")
