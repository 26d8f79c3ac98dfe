"""Options that several commands have."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from .values import by_magnification, device, threads


def add_training(parser: ArgumentParser, *, epochs: int) -> None:
    """Options of a training.

    The defaults belong to ``TrainingOptions``, which need the extra, so they are repeated here; a test compares them.
    """
    add = parser.add_argument
    add("--seed", type=int, help="(default: 0)")
    add("--epochs", type=int, help=f"passes of each stage (default: {epochs})")
    add("--batch-size", type=int, help="slides or patients in a step (default: 32)")
    add("--learning-rate", type=float, help="at its peak (default: 0.0005)")
    add(
        "--distill",
        choices=("auto", "always", "never"),
        help="auto (default) distills where teachers know more than slides",
    )
    add(
        "--log",
        choices=("csv", "tensorboard"),
        help="log of the epochs: csv (default), or tensorboard for both; see it by tensorboard --logdir RUN",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any option of TrainingOptions, e.g. dropout=0.25; comes before [training] of the description, and "
        "options such as --epochs come before it",
    )


def add_resume(parser: ArgumentParser) -> None:
    """The option that continues a run."""
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")


def add_new_slides(parser: ArgumentParser) -> None:
    """Options of a command that reads slides for a saved model."""
    parser.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="MAGNIFICATION=SIDE",
        help="side of a grid cell in the unit of the coordinates, instead of the files' own",
    )
    parser.add_argument(
        "--allow-other-encoder",
        action="store_true",
        help="read slides whose files name another encoder than those of training",
    )
    parser.add_argument(
        "--allow-other-tiles",
        action="store_true",
        help="read slides whose tiles are not as wide as in training, relative to those of another magnification",
    )
    parser.add_argument("--patients", type=Path, help="CSV with the columns slide and patient")


def reading_of(options: Namespace) -> dict[str, Any]:
    """What a function that reads new slides is told by ``add_new_slides``, ``add_overwrite`` and ``add_machine``."""
    return {
        "patients": options.patients,
        "steps": by_magnification("--step", "SIDE", float, options.step),
        "device": options.device or "cpu",
        "threads": options.threads,
        "allow_other_encoder": options.allow_other_encoder,
        "allow_other_tiles": options.allow_other_tiles,
        "overwrite": options.overwrite,
    }


def add_overwrite(parser: ArgumentParser) -> None:
    """The option that allows to replace files."""
    parser.add_argument("--overwrite", action="store_true", help="replace files of --out that are there")


def add_machine(parser: ArgumentParser) -> None:
    """Device and threads of models."""
    parser.add_argument("--device", type=device, help="(default: cpu)")
    parser.add_argument(
        "--threads",
        type=threads,
        default="auto",
        metavar="auto|N",
        help="threads of PyTorch on the CPU; auto takes one per 10,000 patches of a step, at least one and at most "
        "PyTorch's own number; the rule was measured on two cores (default: %(default)s)",
    )
