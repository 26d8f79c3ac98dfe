"""Tell what is understood of a cohort, before any training."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_machine, add_training
from ..training_options import training_from

HELP = "what is understood of a cohort, before any training"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("cohort", type=Path, help="TOML description of the cohort")
    parser.add_argument("--task", metavar="NAME", help="the one task to check (default: all of the description)")
    parser.add_argument("--folds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit with status 2 on any warning")
    add_training(parser, epochs=30)
    add_machine(parser)


def run(options: Namespace) -> int:
    """Run the command."""
    from ...train.check_cohort import check_cohort
    from ...train.cross_validation import TRAIN_OPTIONS

    training = training_from(options, TRAIN_OPTIONS, options.cohort)
    check = check_cohort(options.cohort, training, task=options.task, folds=options.folds, threads=options.threads)
    print(check)
    return 2 if check.errors or (options.strict and check.warnings) else 0
