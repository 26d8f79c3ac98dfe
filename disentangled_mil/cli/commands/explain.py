"""Draw what a model sees in slides, and weigh genes."""

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..shared_options import add_machine, add_new_slides, add_overwrite, reading_of
from ..values import by_magnification

HELP = "maps of slides for QuPath, and genes, behind the predictions of a model"


def add_options(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        type=Path,
        help="run folder with one student (train --refit) or a folder in it, such as fold0; a checkpoint, such as "
        "student.json, distilled.json or teacher.json; or a folder of save_pretrained",
    )
    parser.add_argument(
        "slides",
        nargs="+",
        metavar="MAGNIFICATION=PATH",
        help="folder of slides, or file of one slide; once per magnification of the model",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: maps in the folder of the model, where report looks)"
    )
    parser.add_argument("--images", type=Path, help="folder of slide images, which are drawn behind the maps")
    parser.add_argument("--mpp", type=float, help="micrometers per pixel of level 0 (default: from image or features)")
    parser.add_argument("--expression", type=Path, help="table of expression, which a teacher needs")
    parser.add_argument("--gene-sets", type=Path, help="GMT file of the sets over which genes are summed")
    parser.add_argument("--anndata", action="store_true", help="also write .h5ad, as LazySlide reads it")
    add_new_slides(parser)
    add_overwrite(parser)
    add_machine(parser)


def run(options: Namespace) -> None:
    """Run the command."""
    from ...report.pictures import MAPS
    from ...train.checkpoint import checkpoint_files
    from ...train.explain_slides import Extras, explain_slides

    names = ("images", "mpp", "expression", "gene_sets", "anndata")
    if options.out is None and not options.model.is_dir() and checkpoint_files(options.model)[0].is_file():
        raise ValueError("--out must name a folder, unless the model is a run folder")
    out = options.out or options.model / MAPS
    written = explain_slides(
        options.model,
        by_magnification("slides", "PATH", Path, options.slides),
        out,
        Extras(**{name: getattr(options, name) for name in names}),
        **reading_of(options),
    )
    print(f"{len(written)} maps -> {out}")
    folder = next(
        (place for place in (options.model, *options.model.parents[:2]) if (place / "run.json").is_file()), None
    )
    if folder is not None:
        elsewhere = [] if out == folder / MAPS else ["--maps", str(out)]
        command = shlex.join(["python", "-m", "disentangled_mil", "report", str(folder), *elsewhere])
        print(f"to see them in the report of the run: {command}")
