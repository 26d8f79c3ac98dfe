"""The command line: parse, call, print."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from . import __version__
from ._processes import silent

if TYPE_CHECKING:
    from .train.options import TrainingOptions

T = TypeVar("T")

_MOST_THREADS = 1024  # Far larger numbers end the process without a message.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the input are one line, and exit status 2."""
    with silent(_processes() > 1 and os.environ.get("RANK", "0") != "0"):
        options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(), _together(options):
            warnings.showwarning = _show_warning
            return options.run(options) or 0
    except ModuleNotFoundError as error:
        extra = "" if "pip install" in str(error) else "; install the extra: pip install 'disentangled_mil[train]'"
        print(f"error: {error}{extra}", file=sys.stderr)
        return 2
    except PermissionError as error:
        place = f"{error.filename}: no permission" if error.filename else str(error)
        print(f"error: {place}; give yourself access, e.g. by chmod u+rwX", file=sys.stderr)
        return 2
    except OSError as error:
        # Those of the package are whole sentences; those of Python have a number.
        text = f"{error.filename}: {error.strerror}" if error.errno and error.filename else str(error)
        print(f"error: {text}", file=sys.stderr)
        return 2
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\ninterrupted; {error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m disentangled_mil",
        description="Disentangled multi-modal learning of histology and transcriptomics.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="teacher, student and distillation on a planted cohort")
    demo.add_argument("--task", default="diagnosis", help="diagnosis (default), grading or survival")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)")
    demo.add_argument("--patients", type=int, help="training patients (default: 160)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="cross-validation on a cohort of your own")
    train.add_argument("cohort", type=Path, help="TOML description of the cohort")
    train.add_argument(
        "--task", required=True, metavar="NAME", help="name of a section [tasks.NAME] of the description"
    )
    train.add_argument("--out", type=Path, required=True, help="run folder")
    train.add_argument("--folds", type=int, default=3, help="(default: %(default)s)")
    train.add_argument(
        "--folds-only",
        type=_numbers,
        metavar="N,...",
        help="train these folds only, counted from 0; other jobs may train others in the same run folder, and join "
        "ends the run",
    )
    train.add_argument("--refit", action="store_true", help="after the folds, train students on all patients")
    train.set_defaults(run=_train)

    join = commands.add_parser("join", help="end a run whose folds were trained by several jobs, train --folds-only")
    join.add_argument("folder", type=Path, help="run folder of all jobs")
    join.set_defaults(run=_join)

    predict = commands.add_parser("predict", help="predictions of a saved student for new slides, without genes")
    predict.add_argument("model", type=Path, help="run folder, or the checkpoint of a student, such as student.json")
    predict.add_argument(
        "--students",
        choices=("auto", "final", "folds"),
        default="auto",
        help="of a run folder: the student of all patients (train --refit), or the mean of the folds' predictions; "
        "auto (default) takes final if the run has it",
    )
    predict.add_argument(
        "--slides",
        action="append",
        required=True,
        metavar="MAGNIFICATION=FOLDER",
        help="folder of slides; once per magnification of the student",
    )
    predict.add_argument("--out", type=Path, required=True, help="CSV to write")
    predict.set_defaults(run=_predict)

    explain = commands.add_parser(
        "explain", help="maps of slides for QuPath, and genes, behind the predictions of a model"
    )
    explain.add_argument("checkpoint", type=Path, help="student.json, distilled.json or teacher.json of a run folder")
    explain.add_argument(
        "slides",
        nargs="+",
        metavar="MAGNIFICATION=PATH",
        help="folder of slides, or file of one slide; once per magnification of the model",
    )
    explain.add_argument("--out", type=Path, required=True, help="folder to write to")
    explain.add_argument("--images", type=Path, help="folder of slide images, which are drawn behind the maps")
    explain.add_argument("--mpp", type=float, help="micrometers per pixel of level 0 (default: from image or features)")
    explain.add_argument("--expression", type=Path, help="table of expression, which a teacher needs")
    explain.add_argument("--gene-sets", type=Path, help="GMT file of the sets over which genes are summed")
    explain.add_argument("--anndata", action="store_true", help="also write .h5ad, as LazySlide reads it")
    explain.set_defaults(run=_explain)

    extract = commands.add_parser("extract", help="features of slide images, tile by tile, for the other commands")
    extract.add_argument("slides", nargs="+", type=Path, help="slide images such as .svs, and folders of them")
    extract.add_argument(
        "--magnification", type=float, nargs="+", required=True, help="20 is 0.5 micrometers per pixel"
    )
    extract.add_argument(
        "--encoder",
        required=True,
        help="timm:NAME, or MODULE:FACTORY of a function that returns a model from [B, 3, 224, 224] to [B, D]",
    )
    extract.add_argument("--out", type=Path, required=True, help="folder to write to: OUT/20x/SLIDE.h5")
    extract.add_argument("--weights", type=Path, help="file of weights for timm, instead of those that it downloads")
    extract.add_argument("--stage", type=int, help="feature map of timm to average; 3 is ResNet50's third stage")
    extract.add_argument("--mpp", type=float, help="micrometers per pixel of level 0 (default: from the image)")
    extract.add_argument("--min-tissue", type=float, default=0.25, help="least share of a tile (default: %(default)s)")
    extract.add_argument("--batch-size", type=int, default=64, help="tiles that are encoded at once (default: 64)")
    extract.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="(default: %(default)s)")
    extract.add_argument("--readers", type=int, default=2, help="threads that read tiles (default: %(default)s)")
    extract.add_argument("--device", type=_device, default="cpu", help="(default: %(default)s)")
    extract.set_defaults(run=_extract)

    export = commands.add_parser("export", help="a saved student as an ONNX file, which predicts without PyTorch")
    export.add_argument("model", type=Path, help="run folder with one student, or the checkpoint of a student")
    export.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    export.add_argument(
        "--sets", action="store_true", help="for bags without coordinates, if the checkpoint does not say so"
    )
    export.set_defaults(run=_export)

    check = commands.add_parser("check", help="what is understood of a cohort, before any training")
    check.add_argument("cohort", type=Path, help="TOML description of the cohort")
    check.add_argument("--task", metavar="NAME", help="the one task to check (default: all of the description)")
    check.add_argument("--folds", type=int, default=3, help="(default: %(default)s)")
    check.add_argument("--strict", action="store_true", help="exit with status 2 on any warning")
    check.set_defaults(run=_check)

    report = commands.add_parser("report", help="one HTML page about a finished run; train and demo write it as well")
    report.add_argument("folder", type=Path, help="run folder")
    report.add_argument("--out", type=Path, help="file to write (default: report.html in the run folder)")
    report.set_defaults(run=_report)

    init = commands.add_parser("init", help="write a description of the cohort in a folder, to be completed")
    init.add_argument("folder", type=Path, help="folder of tables, gene sets and folders of slides")
    init.add_argument("--out", type=Path, help="TOML file to write (default: cohort.toml in the folder)")
    init.set_defaults(run=_init)

    # The defaults belong to the options, which need the extra, so they are repeated here; a test compares them.
    for command, epochs in ((demo, 12), (train, 30), (check, 30)):
        command.add_argument("--seed", type=int, help="(default: 0)")
        command.add_argument("--epochs", type=int, help=f"passes of each stage (default: {epochs})")
        command.add_argument("--batch-size", type=int, help="slides or patients in a step (default: 32)")
        command.add_argument("--learning-rate", type=float, help="at its peak (default: 0.0005)")
        command.add_argument(
            "--distill",
            choices=("auto", "always", "never"),
            help="auto (default) distills where teachers know more than slides, and a linear student gains from them",
        )
        command.add_argument(
            "--log",
            choices=("csv", "tensorboard"),
            help="log of the epochs: csv (default), or tensorboard for both; see it by tensorboard --logdir RUN",
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="any option of TrainingOptions, e.g. dropout=0.25; comes before [training] of the description, and "
            "options such as --epochs come before it",
        )
    for command in (demo, train):
        command.add_argument("--resume", action="store_true", help="continue an interrupted run")
    for command in (predict, explain):
        command.add_argument(
            "--step",
            action="append",
            default=[],
            metavar="MAGNIFICATION=SIDE",
            help="side of a grid cell in the unit of the coordinates, instead of the files' own",
        )
        command.add_argument(
            "--allow-other-encoder",
            action="store_true",
            help="read slides whose files name another encoder than those of training",
        )
        command.add_argument(
            "--allow-other-tiles",
            action="store_true",
            help="read slides whose tiles are not as wide as in training, relative to those of another magnification",
        )
        command.add_argument("--patients", type=Path, help="CSV with the columns slide and patient")
    for command in (predict, explain, report, init, export):
        command.add_argument("--overwrite", action="store_true", help="replace files of --out that are there")
    for command in (demo, train, predict, explain, check):
        command.add_argument("--device", type=_device, help="(default: cpu)")
        command.add_argument(
            "--threads",
            type=_threads,
            default="auto",
            metavar="auto|N",
            help="threads of PyTorch on the CPU; auto takes one per 10,000 patches of a step, at least one and at most "
            "PyTorch's own number; the rule was measured on two cores (default: %(default)s)",
        )
    return parser


def _processes() -> int:
    """The number of processes that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def _together(options: argparse.Namespace) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for the command that trains in several."""
    if _processes() == 1:
        yield
        return
    from .train.processes import together

    with together():
        if options.run is not _train:
            raise ValueError("several processes can run the command train only, so start others without torchrun")
        yield


def _device(name: str) -> str:
    """The name of a device on which tensors can be made and read, of float64 too."""
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built for the device
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"must be a device of this machine, got {name!r} ({reason})") from error
    return name


def _numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    if not re.fullmatch("[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise argparse.ArgumentTypeError(f"must be numbers of folds such as 0,2, got {text!r}")
    return [int(number) for number in text.split(",")]


def _threads(text: str) -> int | str:
    """A number of threads, or auto."""
    if text == "auto":
        return text
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be auto or a whole number from 1 to {_MOST_THREADS}, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    from .train.demo import DEMO_OPTIONS, run_demo

    patients = {} if options.patients is None else {"patients": options.patients}
    training = _training(options, DEMO_OPTIONS)
    print(run_demo(options.out, options.task, training, threads=options.threads, resume=options.resume, **patients))


def _train(options: argparse.Namespace) -> None:
    from .train.cross_validation import TRAIN_OPTIONS, run_cross_validation

    report = run_cross_validation(
        options.cohort,
        options.task,
        options.out,
        _training(options, TRAIN_OPTIONS, options.cohort),
        folds=options.folds,
        folds_only=options.folds_only,
        threads=options.threads,
        refit=options.refit,
        resume=options.resume,
    )
    print(report)


def _join(options: argparse.Namespace) -> None:
    from .train.join_folds import join_folds

    print(join_folds(options.folder))


def _predict(options: argparse.Namespace) -> None:
    from .train.predict import predict_slides

    table = predict_slides(
        options.model,
        _by_magnification("--slides", "FOLDER", Path, options.slides),
        options.out,
        students=options.students,
        patients=options.patients,
        steps=_by_magnification("--step", "SIDE", float, options.step),
        device=options.device or "cpu",
        threads=options.threads,
        allow_other_encoder=options.allow_other_encoder,
        allow_other_tiles=options.allow_other_tiles,
        overwrite=options.overwrite,
    )
    print(f"{len(table)} predictions -> {options.out}")


def _explain(options: argparse.Namespace) -> None:
    from .train.explain_slides import Extras, explain_slides

    names = ("images", "mpp", "expression", "gene_sets", "anndata")
    written = explain_slides(
        options.checkpoint,
        _by_magnification("slides", "PATH", Path, options.slides),
        options.out,
        Extras(**{name: getattr(options, name) for name in names}),
        patients=options.patients,
        steps=_by_magnification("--step", "SIDE", float, options.step),
        device=options.device or "cpu",
        threads=options.threads,
        allow_other_encoder=options.allow_other_encoder,
        allow_other_tiles=options.allow_other_tiles,
        overwrite=options.overwrite,
    )
    print(f"{len(written)} maps -> {options.out}")


def _extract(options: argparse.Namespace) -> int:
    from .extract import Extractor, extract_slides, load_encoder

    names = ("min_tissue", "batch_size", "device", "readers")
    given = {name: getattr(options, name) for name in names}
    try:
        encoder = load_encoder(options.encoder, weights=options.weights, stage=options.stage)
        extractor = Extractor(encoder, dtype=getattr(torch, options.dtype), **given)
        done = extract_slides(options.slides, options.magnification, extractor, options.out, mpp=options.mpp)
    except TypeError as error:  # The encoder is of the user.
        raise ValueError(str(error)) from error
    kept = f", {len(done.kept)} finished before are kept" if done.kept else ""
    many = "1 slide is" if len(done.failed) == 1 else f"{len(done.failed)} slides are"
    failed = f", {many} left out" if done.failed else ""
    print(f"{len(done.written)} files -> {options.out}{kept}{failed}")
    return 1 if done.failed else 0


def _export(options: argparse.Namespace) -> None:
    from .deploy import export_onnx

    path = export_onnx(options.model, options.out, sets=options.sets, overwrite=options.overwrite)
    print(f"student -> {path}")


def _check(options: argparse.Namespace) -> int:
    from .train.check_cohort import check_cohort
    from .train.cross_validation import TRAIN_OPTIONS

    training = _training(options, TRAIN_OPTIONS, options.cohort)
    check = check_cohort(options.cohort, training, task=options.task, folds=options.folds, threads=options.threads)
    print(check)
    return 2 if check.errors or (options.strict and check.warnings) else 0


def _report(options: argparse.Namespace) -> None:
    from .report import write_report

    print(f"report -> {write_report(options.folder, options.out, overwrite=options.overwrite)}")


def _init(options: argparse.Namespace) -> None:
    from .data.describe_folder import describe_folder

    out = options.out or options.folder / "cohort.toml"
    describe_folder(options.folder, out, overwrite=options.overwrite)
    print(f"description to complete -> {out}\nthen: python -m disentangled_mil check {out}")


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning of the package as one line, and others with their place in the code."""
    text = f"warning: {message}\n" if category is UserWarning else warnings.formatwarning(message, category, *place[:2])
    print(text, file=sys.stderr, end="")


def _by_magnification(option: str, value: str, kind: Callable[[str], T], entries: Sequence[str]) -> dict[str, T]:
    """Several options MAGNIFICATION=VALUE as a mapping."""
    given: dict[str, T] = {}
    for entry in entries:
        magnification, separator, text = entry.partition("=")
        try:
            if not separator or magnification in given:
                raise ValueError(entry)
            given[magnification] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"{option} must be MAGNIFICATION={value}, each magnification once, got {entry!r}"
            ) from error
    return given


def _training(
    options: argparse.Namespace, defaults: "TrainingOptions", description: Path | None = None
) -> "TrainingOptions":
    """The options of a run; those with a name of their own on the command line come before all others."""
    from .train.settings import training_options

    training = training_options(description, defaults, options.set)
    try:
        _device(training.device)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"device {error}") from error
    names = ("epochs", "batch_size", "learning_rate", "seed", "device", "distill", "log")
    given = {name: getattr(options, name) for name in names}
    return replace(training, **{name: value for name, value in given.items() if value is not None})
