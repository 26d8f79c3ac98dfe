"""Describe the cohort in a folder."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_overwrite

HELP = "write a description of the cohort in a folder, to be completed"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, help="folder of tables, gene sets and folders of slides")
    parser.add_argument("--out", type=Path, help="TOML file to write (default: cohort.toml in the folder)")
    add_overwrite(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...data.describe_folder import describe_folder

    out = options.out or options.folder / "cohort.toml"
    describe_folder(options.folder, out, overwrite=options.overwrite)
    print(f"description to complete -> {out}\nthen: python -m disentangled_mil check {out}")
