"""The options of a training, from those of the command line."""

from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .values import device

if TYPE_CHECKING:
    from ..train.options import TrainingOptions


def training_from(
    options: Namespace, defaults: "TrainingOptions", description: Path | None = None
) -> "TrainingOptions":
    """The options of a run; those with a name of their own on the command line come before all others."""
    from ..train.settings import training_options

    training = training_options(description, defaults, options.set)
    try:
        device(training.device)
    except ArgumentTypeError as error:
        raise ValueError(f"device {error}") from error
    names = ("epochs", "batch_size", "learning_rate", "seed", "device", "distill", "log")
    given = {name: getattr(options, name) for name in names}
    return replace(training, **{name: value for name, value in given.items() if value is not None})
