"""Predict new slides with a saved student."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_machine, add_new_slides, add_overwrite, reading_of
from ..values import by_magnification

HELP = "predictions of a saved student for new slides, without genes"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        type=Path,
        help="run folder or a folder in it, such as fold0; the checkpoint of a student, such as student.json; or a "
        "folder of save_pretrained",
    )
    parser.add_argument(
        "--students",
        choices=("auto", "final", "folds"),
        default="auto",
        help="of a run folder: the student of all patients (train --refit), or the mean of the folds' predictions; "
        "auto (default) takes final if the run has it",
    )
    parser.add_argument(
        "--slides",
        action="append",
        required=True,
        metavar="MAGNIFICATION=FOLDER",
        help="folder of slides; once per magnification of the student",
    )
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    add_new_slides(parser)
    add_overwrite(parser)
    add_machine(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...train.predict import predict_slides

    table = predict_slides(
        options.model,
        by_magnification("--slides", "FOLDER", Path, options.slides),
        options.out,
        students=options.students,
        **reading_of(options),
    )
    print(f"{len(table)} predictions -> {options.out}")
