"""Train all models on a planted cohort."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_machine, add_resume, add_training
from ..training_options import training_from

HELP = "teacher, student and distillation on a planted cohort"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--task", default="diagnosis", help="diagnosis (default), grading or survival")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    parser.add_argument("--patients", type=int, help="training patients (default: 160)")
    add_training(parser, epochs=12)
    add_resume(parser)
    add_machine(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...train.demo import DEMO_OPTIONS, run_demo

    patients = {} if options.patients is None else {"patients": options.patients}
    training = training_from(options, DEMO_OPTIONS)
    print(run_demo(options.out, options.task, training, threads=options.threads, resume=options.resume, **patients))
