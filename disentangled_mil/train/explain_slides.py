"""Maps and genes behind the predictions of a saved model, for slides in folders."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .._exit_status import work_begins
from .._files import check_outputs
from .._tables import write_table
from ..bags import Bag, collate_samples
from ..data.cohort import Sample, StoredBag
from ..data.expression import ExpressionPipeline
from ..data.slides import SlideError, TilePlaces, slide_name, tile_places
from ..explain import (
    TileMap,
    combine_maps,
    draw_map,
    student_view,
    teacher_view,
    write_anndata,
    write_geojson,
)
from ..explain.thumbnail import Thumbnail, read_thumbnail
from ..models import Student, Teacher
from ..report.tables import NOT_NAMED
from ..tasks import KINDS, Task
from .building import WITHOUT_GENES
from .checkpoint import checkpoint_files, load_model
from .explain_genes import ExplainedGenes
from .new_slides import all_checked, files_of, new_samples
from .saved_students import one_checkpoint
from .threads import Threads, using_threads

_LEVEL0 = "level-0 pixels"


@dataclass(frozen=True)
class Extras:
    """What :func:`explain_slides` may be given beside slides.

    Args:
        images: folder of slide images, which are drawn behind the maps; by the names of the slides.
        mpp: micrometers per pixel of level 0, instead of those of the image or of the files.
        expression: table of expression, which a teacher needs.
        gene_sets: GMT file, whose sets attributions of genes are summed over.
        anndata: flag that writes a ``.h5ad`` for every magnification.
    """

    images: str | Path | None = None
    mpp: float | None = None
    expression: str | Path | None = None
    gene_sets: str | Path | None = None
    anndata: bool = False


def explain_slides(
    model: str | Path,
    folders: Mapping[str, str | Path],
    out: str | Path,
    extras: Extras | None = None,
    *,
    patients: str | Path | None = None,
    steps: Mapping[str, float] | None = None,
    device: str = "cpu",
    threads: Threads = None,
    allow_other_encoder: bool = False,
    allow_other_tiles: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    kinds: Mapping[str, type[Task]] = KINDS,
) -> list[str]:
    """Write a map for every slide: ``SLIDE.csv``, ``SLIDE.png`` and ``SLIDE.geojson``.

    A student's map shows its prototypes and attention. A teacher's map shows the attention of every subspace, and
    ``genes.csv`` and ``gene_sets.csv`` tell which genes move the prediction for each patient.

    The metadata and coordinates of all slides are checked before the first map. A slide whose features or image are
    refused later does not stop the others, and the error at the end names it.

    Args:
        model: checkpoint of a student or teacher, or a run folder that holds one student (``train --refit``, or
            ``demo``).
        folders: folder of slides, or file of one slide, for every magnification of the model.
        out: folder to write to; it is made.
        extras: images, expression and further outputs.
        patients: CSV with the columns ``slide`` and ``patient``; without it every slide is a patient.
        steps: side of a grid cell in the unit of the coordinates, by magnification; by default from the files.
        device: device of the computation.
        threads: number of threads, ``"auto"`` to choose for every sample, or None for PyTorch's setting.
        allow_other_encoder: flag that allows slides of another encoder than that of training.
        allow_other_tiles: flag that allows slides whose tiles at one magnification are not as wide as in training,
            relative to those at another magnification.
        overwrite: flag that allows to replace files in ``out``, except those that are read.
        quiet: flag that hides the progress.
        kinds: class of every kind of task.

    Returns:
        The slides that have a map.

    Raises:
        FileExistsError: a file to be written is there, and ``overwrite`` is False.
        FileNotFoundError: a file or folder is missing.
        ModuleNotFoundError: an extra is not installed.
        ValueError: the checkpoint is no student or teacher, a run folder holds the students of several folds, a slide
            cannot be read or has no coordinates, a teacher lacks expression or patients, or a file to be written is one
            that is read.
    """
    extras, steps, out = extras or Extras(), steps or {}, Path(out)
    if extras.mpp is not None and not 0 < extras.mpp < float("inf"):
        raise ValueError(f"mpp must be positive and finite, got {extras.mpp}")
    checkpoint = one_checkpoint(model)
    network, task, reading, expression, notes = load_model(checkpoint, kinds=kinds)
    if not isinstance(network, (Student, Teacher)):
        raise ValueError(f"{checkpoint}: must hold a student or a teacher, got a {type(network).__name__}")
    if task is None or reading is None:
        lacking = "task" if task is None else "reading"
        raise ValueError(
            f"{checkpoint}: must have the key {lacking!r}; save the model by save_model(..., {lacking}=...)"
        )
    width = network.arguments["features"]
    samples = new_samples(network.magnifications, folders, patients, steps, reading, width)
    samples = all_checked(
        samples,
        width,
        reading,
        allow_other_encoder=allow_other_encoder,
        allow_other_tiles=allow_other_tiles,
        quiet=quiet,
    )
    places = [_places(sample, steps) for sample in samples]
    genes = _genes(checkpoint, network, expression, extras, [sample.patient for sample in samples], patients)
    unnamed = _is_unnamed(network, notes)
    if unnamed:
        warnings.warn(f"{checkpoint}: {NOT_NAMED}", stacklevel=2)
    images = {} if extras.images is None else {slide_name(path.name): path for path in Path(extras.images).iterdir()}
    tables = [table for table in (extras.expression, extras.gene_sets, patients) if table is not None]
    inputs = [
        *files_of(samples),
        *checkpoint_files(checkpoint),
        *tables,
        *filter(Path.is_file, images.values()),
    ]
    read = {*map(Path, folders.values()), *(path.parent for path in files_of(samples))}
    if out.is_dir() and any(folder.is_dir() and out.samefile(folder) for folder in read):
        raise ValueError(f"{out}: must be another folder than that of the slides")
    check_outputs(_outputs(out, places, extras, genes), inputs, overwrite=overwrite, what="folder")
    out.mkdir(parents=True, exist_ok=True)
    network.to(device)
    written, failures = [], dict[str, Exception]()
    work_begins()
    progress = tqdm(samples, desc="explaining", unit="sample", disable=quiet)
    for sample, placed in zip(progress, places, strict=True):
        try:
            bags = {name: bag.to(device) for name, bag in collate_samples([sample.load()]).items()}
            behind = {slide: read_thumbnail(images[slide]) for slide in placed if slide in images}
        except (ValueError, OSError) as error:
            failures[sample.name] = error
            continue
        with using_threads(threads, [sum(bag.patches.shape[1] for bag in bags.values())], batch_size=1):
            views = _views(network, bags, None if genes is None else genes.of(sample.patient))
            if isinstance(network, Teacher) and genes is not None:
                genes.explain(network, bags, sample.patient, sample.name, task)
        for slide, parts in placed.items():
            image = behind.get(slide)
            maps = {part.magnification: _map(part, views[part.magnification], network, image, extras) for part in parts}
            _write(out, slide, maps, image, f"{slide} (this student {NOT_NAMED})" if unnamed else slide)
            if extras.anndata:
                for part in parts:
                    features = bags[part.magnification].patches[0, part.rows]
                    own = maps[part.magnification]
                    step = None if part.places.source.tile is None else float(own.size[0])
                    mpp = part.places.source.mpp
                    write_anndata(_anndata_file(out, slide, part), own, features, mpp=mpp, step=step)
            written.append(slide)
    if genes is not None:
        genes.write(out)
    if failures:
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise ValueError(
            f"{out}: holds maps of {len(written)} slides, without {len(failures)} of {len(samples)} "
            f"{reading.unit}s that were refused: {reasons}"
        )
    return written


def _outputs(
    out: Path, places: Sequence[Mapping[str, Sequence["_Part"]]], extras: Extras, genes: ExplainedGenes | None
) -> list[Path]:
    """All files that may be written."""
    slides = [(slide, parts) for placed in places for slide, parts in placed.items()]
    files = [out / f"{slide}{ending}" for slide, _ in slides for ending in (".csv", ".png", ".geojson")]
    if extras.anndata:
        files += [_anndata_file(out, slide, part) for slide, parts in slides for part in parts]
    return files + ([] if genes is None else genes.files(out))


def _anndata_file(out: Path, slide: str, part: "_Part") -> Path:
    return out / f"{slide}_{part.magnification}.h5ad"


class _Part(NamedTuple):
    """The tiles of one slide in the bag of one magnification."""

    magnification: str
    rows: slice
    places: TilePlaces
    side: float


def _places(sample: Sample, steps: Mapping[str, float]) -> dict[str, list[_Part]]:
    """Where the tiles of a bag lie, by slide; a bag of a patient may hold several slides."""
    found: dict[str, list[_Part]] = {}
    for name, bag in sample.bags.items():
        if not isinstance(bag, StoredBag):
            continue  # The sample has no tiles at this magnification.
        bag.check_places()
        start = 0
        for places in tile_places(
            *bag.paths,
            features=bag.features,
            coords=bag.coords,
            drop_augmented=bag.drop_augmented,
            max_tokens=bag.max_tokens,
        ):
            path = places.source.files[0]
            if not places.source.tokens:
                continue
            if places.coords is None:
                raise SlideError(
                    f"{path}: a map needs the coordinates of the tiles, got none; extract the features with a program "
                    "that stores them, such as TRIDENT, CLAM or STAMP",
                    path,
                )
            if not len(places.coords):
                continue  # The share of a small slide in max_tokens is no tile.
            side = places.source.tile or steps.get(name) or places.tile
            if side is None:
                raise SlideError(
                    f"{path}: a map needs the side of a tile, got none; give it by --step {name}=SIDE", path
                )
            rows = slice(start, start + len(places.coords))
            start = rows.stop
            found.setdefault(slide_name(path.name), []).append(_Part(name, rows, places, side))
    return found


def _genes(
    checkpoint: Path,
    model: Student | Teacher,
    pipeline: ExpressionPipeline | None,
    extras: Extras,
    patients: Sequence[str],
    owners: str | Path | None,
) -> ExplainedGenes | None:
    """The expression of a teacher; None for a student."""
    if isinstance(model, Student):
        if extras.expression is not None:
            raise ValueError(f"{checkpoint}: must hold a teacher, if --expression is given, got a student")
        return None
    if pipeline is None:
        raise ValueError(
            f"{checkpoint}: must have the key 'expression'; save the model by save_model(..., expression=...)"
        )
    if extras.expression is None:
        raise ValueError(f"{checkpoint}: a teacher needs the expression of its patients; give it by --expression")
    return ExplainedGenes(pipeline, extras.expression, extras.gene_sets, patients, slides_are_patients=owners is None)


@torch.no_grad()
def _views(
    model: Student | Teacher, bags: Mapping[str, Bag], genes: Mapping[str, Tensor] | None
) -> dict[str, dict[str, Tensor]]:
    """What the model sees on every tile, by magnification."""
    if isinstance(model, Student):
        students = model(bags).branches
        return {
            name: student_view(branch, model.subspaces) for name, branch in students.items() if bags[name].mask.any()
        }
    device = next(model.parameters()).device
    teachers = model(bags, {subspace: values.to(device) for subspace, values in (genes or {}).items()}).branches
    return {name: teacher_view(branch) for name, branch in teachers.items() if bags[name].mask.any()}


def _map(
    part: _Part, view: Mapping[str, Tensor], model: Student | Teacher, image: Thumbnail | None, extras: Extras
) -> TileMap:
    """The map of one slide at one magnification, in level-0 pixels where their size is known."""
    source, coords, side = part.places.source, part.places.coords, part.side
    if coords is None:
        raise RuntimeError("places without coordinates are refused before")
    unit, unit_um = source.unit or _LEVEL0, source.unit_um
    level0_um = extras.mpp or (image.mpp if image else None)
    if unit == _LEVEL0:
        unit_um = level0_um or unit_um
    elif level0_um is not None and unit_um is not None:
        factor = unit_um / level0_um
        coords, side, unit, unit_um = coords * factor, side * factor, _LEVEL0, level0_um
    columns = {name: values[part.rows].cpu() for name, values in view.items()}
    classes = model.subspaces if isinstance(model, Student) else ()
    return TileMap(coords, torch.full((len(coords),), side), columns, classes, unit=unit, unit_um=unit_um)


def _is_unnamed(model: Student | Teacher, notes: Mapping[str, object]) -> bool:
    """Whether a student has the names of subspaces of genes, but no teacher told its prototypes apart."""
    return isinstance(model, Student) and notes.get("name") == "student" and tuple(model.subspaces) != WITHOUT_GENES


def _write(out: Path, slide: str, maps: Mapping[str, TileMap], image: Thumbnail | None, title: str) -> None:
    """The files of one slide."""
    tiles = combine_maps(maps)
    drawn = [name for name in tiles.columns if name.startswith("attention") and _is_drawn(name, maps)]
    write_table(out / f"{slide}.csv", tiles.table(), float_format="%.6g")
    draw_map(out / f"{slide}.png", tiles, drawn, title=title, thumbnail=image if tiles.unit == _LEVEL0 else None)
    if tiles.unit == _LEVEL0:
        write_geojson(out / f"{slide}.geojson", tiles)
    else:
        warnings.warn(
            f"{slide}: QuPath needs level-0 pixels, got {tiles.unit}, so no GeoJSON is written; --images or --mpp "
            "gives the size of a pixel",
            stacklevel=3,
        )


def _is_drawn(name: str, maps: Mapping[str, TileMap]) -> bool:
    """Columns of all heads and magnifications together."""
    return "_head" not in name and not any(name.endswith(f"_{magnification}") for magnification in maps)
