"""Train and test by cross-validation on a cohort of one's own."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_machine, add_resume, add_training
from ..training_options import training_from
from ..values import fold_numbers

HELP = "cross-validation on a cohort of your own"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("cohort", type=Path, help="TOML description of the cohort")
    parser.add_argument(
        "--task", required=True, metavar="NAME", help="name of a section [tasks.NAME] of the description"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--folds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--folds-only",
        type=fold_numbers,
        metavar="N,...",
        help="train these folds only, counted from 0; other jobs may train others in the same run folder, and join "
        "ends the run",
    )
    parser.add_argument("--refit", action="store_true", help="after the folds, train students on all patients")
    add_training(parser, epochs=30)
    add_resume(parser)
    add_machine(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...train.cross_validation import TRAIN_OPTIONS, run_cross_validation

    report = run_cross_validation(
        options.cohort,
        options.task,
        options.out,
        training_from(options, TRAIN_OPTIONS, options.cohort),
        folds=options.folds,
        folds_only=options.folds_only,
        threads=options.threads,
        refit=options.refit,
        resume=options.resume,
    )
    print(report)
