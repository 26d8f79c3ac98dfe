"""End a run whose folds were trained by several jobs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

HELP = "end a run whose folds were trained by several jobs, train --folds-only"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, help="run folder of all jobs")


def run(options: Namespace) -> None:
    """Run the command."""
    from ...train.join_folds import join_folds

    print(join_folds(options.folder))
