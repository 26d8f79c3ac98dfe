"""A planted cohort: simulated patients for whom the cause of every label, gene and patch is known."""

import json
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from .._checks import check_count, check_interval, check_type
from .._files import check_outputs, replacing
from ..bags import Bag, Grid
from ..tasks import Classification, DiscreteSurvival, TaskDefinition
from ._planted_slides import draw_appearance, draw_scanner, draw_slides, scan
from .cohort import Cohort, Sample
from .slides import write_bag

Array = NDArray[np.float64]

# Side of a patch in level-0 pixels of 0.25 um: a patch has 224 pixels of 1 um (10x) or 0.5 um (20x).
_STEP = {"10x": 896, "20x": 448}
_DIAGNOSES = np.array(["A", "B", "C", "D"])
_GRADES = np.array(["G2", "G3", "G4"])

TASKS = {
    "diagnosis": Classification.define(column="diagnosis"),
    "grading": Classification.define(column="grade"),
    "survival": DiscreteSurvival.define(time="time", event="event"),
}

_DESCRIPTION, _TABLE, _EXPRESSION, _GENES = "cohort.toml", "clinical.csv", "expression.csv.gz", "gene_sets.gmt"
_CLINICAL = """\
[clinical]
table = "clinical.csv"
"""
_SLIDES = """
[slides.10x]
folder = "slides/10x"

[slides.20x]
folder = "slides/20x"
"""
_PAIRED = """
[expression]
table = "expression.csv.gz"

[genes]
gmt = "gene_sets.gmt"
tumor = ["tumor"]
tme = ["tme"]
"""


class PlantedCohort(NamedTuple):
    """A cohort and the truth behind it.

    Args:
        cohort: data of the models: slides at ``"10x"`` and ``"20x"``, clinical table, expression.
        regions: masks per sample and magnification, True where a patch is mostly tumor.
        programs: strength of the programs per patient, columns ``tumor`` and ``tme``.
        gene_sets: genes that load on each program.

    Shape:
        ``regions`` [N] bool each.
    """

    cohort: Cohort
    regions: dict[str, dict[str, Tensor]]
    programs: pd.DataFrame
    gene_sets: dict[str, tuple[str, ...]]


class _GeneModel(NamedTuple):
    """The parameters by which expression follows from the programs."""

    genes: list[str]
    baseline: Array  # [G] mean log expression
    loadings: Array  # [4, G] of the tumor program, the TME program and two confounders
    noise: Array  # [G]


def planted_cohort(
    patients: int,
    *,
    seed: int,
    shift: float = 0.0,
    width: int = 32,
    grid: tuple[int, int] = (14, 12),
    tumor_genes: int = 60,
    tme_genes: int = 120,
    other_genes: int = 120,
    rna_noise: float = 0.6,
    histology_noise: float = 0.8,
    label_noise: float = 0.45,
    censoring: float = 0.4,
    world_seed: int = 0,
) -> PlantedCohort:
    r"""Simulate patients with a tumor program u and a TME program v, both N(0, 1).

    * Diagnosis: the quadrant of :math:`(u + \epsilon, v + \epsilon')`, four classes. Grade: thirds of
      :math:`0.8 u + 0.6 v + \epsilon''`. Survival: Weibull with log hazard :math:`1.1 u - 0.8 v`, censored at
      random. One program alone settles none of them.
    * Expression (TPM-like): :math:`\exp(b + [u + \eta, v + \eta', w]\, L + \text{noise})`, where the tumor
      genes load on the first, the TME genes on the second and all genes on two confounders w.
    * Histology: one or two slides of irregular outline, tumor nests in stroma. A patch that is tumor to
      the share t shows :math:`a t + t (u + \zeta)\, d_T + (1 - t)(v + \zeta')\, d_E` and nuisance of the
      patient, the slide and the patch. A patch at 10x is the same tissue as four at 20x.

    So RNA is more informative than histology, and regions apart are more informative than their mean. The defaults were
    chosen on seeds 0 to 4 and 100000 to 100004: report results on other seeds.

    Args:
        patients: number of patients.
        seed: seed of the patients and the scanner. The first patients do not depend on the number of patients, except
            for their censoring.
        shift: strength of the site's stain and scanner, 0 (none) to 10: a fixed random mixing, gain and
            offset of the features, and noise. It changes features only.
        width: number of features C of a patch, at least 4.
        grid: columns and rows of the slide at 10x; tissue covers 40 to 85 % of it.
        tumor_genes: number of genes that load on the tumor program.
        tme_genes: number of genes that load on the TME program.
        other_genes: number of genes that load on neither.
        rna_noise: standard deviation of :math:`\eta`, the error of the programs in RNA.
        histology_noise: standard deviation of :math:`\zeta`, the error of the programs in the tissue.
        label_noise: standard deviation of :math:`\epsilon`.
        censoring: share of the patients whose event is not observed, 0 to 0.9.
        world_seed: seed of gene loadings and of the directions of the features. Cohorts are comparable if
            ``world_seed``, ``width`` and the numbers of genes agree.

    Returns:
        The cohort with its truth. Clinical columns: ``diagnosis`` (A-D), ``grade`` (G2-G4), ``time`` (days),
        ``event`` (1 = event observed). Tasks: ``diagnosis``, ``grading`` and ``survival``.

    Raises:
        TypeError: a count is no integer or a strength no number.
        ValueError: an argument is out of range.

    Example:
        >>> from disentangled_mil.data.planted import planted_cohort
        >>> planted = planted_cohort(3, seed=7)
        >>> sample = planted.cohort.samples[0]
        >>> [bag.patches.shape[1] for bag in sample.bags.values()]
        [92, 368]
        >>> planted.cohort.clinical.columns.tolist(), planted.cohort.expression.shape
        (['diagnosis', 'grade', 'time', 'event'], (3, 300))
    """
    for name, count, minimum in (
        ("patients", patients, 1),
        ("seed", seed, 0),
        ("world_seed", world_seed, 0),
        ("width", width, 4),
        ("tumor_genes", tumor_genes, 1),
        ("tme_genes", tme_genes, 1),
        ("other_genes", other_genes, 0),
    ):
        check_count(name, count, minimum)
    check_type("grid", grid, (list, tuple), "columns and rows")
    if len(grid) != 2:
        raise ValueError(f"grid must be two numbers, columns and rows, got {len(grid)}")
    for side in grid:
        check_count("grid", side)
    check_interval("shift", shift, 0.0, 10.0)
    check_interval("rna_noise", rna_noise, 0.0, 10.0)
    check_interval("histology_noise", histology_noise, 0.0, 10.0)
    check_interval("label_noise", label_noise, 0.0, 10.0)
    check_interval("censoring", censoring, 0.0, 0.9)

    gene_sets = {
        "tumor": tuple(f"TUMOR{number:03d}" for number in range(tumor_genes)),
        "tme": tuple(f"TME{number:03d}" for number in range(tme_genes)),
    }
    histology, transcription = np.random.default_rng(world_seed).spawn(2)
    appearance = draw_appearance(histology, width)
    gene_model = _gene_model(transcription, gene_sets, other_genes)
    labels, lives, rna, slides, site = np.random.default_rng(seed).spawn(5)
    scanner = draw_scanner(site, shift, width)
    index = pd.Index([f"P{seed}-{number:04d}" for number in range(patients)], name="patient_id")
    drawn = labels.standard_normal((patients, 5))
    programs, noise = drawn[:, :2], label_noise * drawn[:, 2:]
    clinical = _labels(programs, noise).join(_survival(lives, programs, censoring)).set_index(index)
    expression = _expression(rna, programs, rna_noise, gene_model).set_index(index)
    samples: list[Sample] = []
    regions: dict[str, dict[str, Tensor]] = {}
    for patient, program in zip(index, programs, strict=True):
        shown = program + histology_noise * slides.standard_normal(2)
        for number, views in enumerate(draw_slides(slides, shown, grid, appearance), start=1):
            name = f"{patient}-{number}"
            bags = {
                magnification: _bag(scan(site, view.features, scanner), view.cells, _STEP[magnification])
                for magnification, view in views.items()
            }
            samples.append(Sample(name, patient, bags))
            regions[name] = {
                magnification: torch.from_numpy(view.tumor >= 0.5) for magnification, view in views.items()
            }
    truth = pd.DataFrame(programs, index, ["tumor", "tme"])
    cohort = Cohort(tuple(samples), clinical, expression, gene_sets, tasks=TASKS)
    return PlantedCohort(cohort, regions, truth, gene_sets)


def write_cohort(planted: PlantedCohort, folder: str | Path) -> Path:
    """Write a planted cohort as files, so that it can be used like a real one.

    Features are stored as float16, as extractors do. The truth is not written.

    Args:
        planted: cohort to write.
        folder: folder, which is made if it is absent.

    Returns:
        The description ``cohort.toml``, for :func:`~.cohort_file.read_cohort`. Beside it: ``clinical.csv``,
        ``slides/<magnification>/<slide>.h5`` and, unless the cohort has no expression, ``expression.csv.gz``
        and ``gene_sets.gmt``.

    Raises:
        FileExistsError: a file of the cohort is there already.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from disentangled_mil.data.planted import planted_cohort, write_cohort
        >>> path = write_cohort(planted_cohort(2, seed=7), tempfile.mkdtemp())
        >>> sorted(entry.name for entry in path.parent.iterdir())
        ['clinical.csv', 'cohort.toml', 'expression.csv.gz', 'gene_sets.gmt', 'slides']
    """
    folder = Path(folder)
    cohort = planted.cohort
    slides: dict[str, list[str]] = {}
    files = [folder / name for name in (_DESCRIPTION, _TABLE, _EXPRESSION, _GENES)]
    files += [_slide(folder, magnification, each.name) for each in cohort.samples for magnification in each.bags]
    check_outputs(files, [], overwrite=False, what="folder", remedy=None)
    for magnification in cohort.magnifications:
        (folder / "slides" / magnification).mkdir(parents=True, exist_ok=True)
    for sample in cohort.samples:
        slides.setdefault(sample.patient, []).append(sample.name)
        for magnification, bag in sample.load().items():
            step = _STEP[magnification]
            write_bag(
                _slide(folder, magnification, sample.name),
                bag.patches[0].half(),
                cast(Grid, bag.grid).cells[0] * step,
                step=step,
            )
    names = [";".join(slides[patient]) for patient in cohort.patients]
    with replacing(folder / _TABLE) as temporary:
        cohort.clinical.assign(slides=names).to_csv(temporary)
    description = _CLINICAL + "".join(_described(name, task) for name, task in cohort.tasks.items()) + _SLIDES
    if cohort.expression is not None:
        with replacing(folder / _EXPRESSION) as temporary:
            cohort.expression.to_csv(temporary, compression="gzip")
        lines = ["\t".join([name, "planted", *genes]) + "\n" for name, genes in planted.gene_sets.items()]
        with replacing(folder / _GENES) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        description += _PAIRED
    path = folder / _DESCRIPTION
    with replacing(path) as temporary:  # It is written last, so a half cohort has none.
        temporary.write_text(description, encoding="utf-8")
    return path


def _slide(folder: Path, magnification: str, name: str) -> Path:
    """The file of a slide."""
    return folder / "slides" / magnification / f"{name}.h5"


def _described(name: str, task: TaskDefinition) -> str:
    """The section of a task in a description."""
    options = {key: value for key, value in task.options.items() if value != task.kind.options[key]}
    keys = {"kind": task.kind.kind, **task.columns, **options}
    # Text, numbers, true and false and lists of text are written alike in JSON and in TOML.
    return f"\n[tasks.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


def _gene_model(rng: Generator, gene_sets: dict[str, tuple[str, ...]], other_genes: int) -> _GeneModel:
    tumor, tme = len(gene_sets["tumor"]), len(gene_sets["tme"])
    genes = [*gene_sets["tumor"], *gene_sets["tme"], *(f"OTHER{number:03d}" for number in range(other_genes))]
    loadings = 0.4 * rng.standard_normal((4, len(genes)))
    loadings[0, tumor:] = 0
    loadings[1, :tumor] = loadings[1, tumor + tme :] = 0
    return _GeneModel(genes, rng.normal(2.5, 1.0, len(genes)), loadings, rng.uniform(0.4, 0.9, len(genes)))


def _labels(programs: Array, noise: Array) -> pd.DataFrame:
    high = programs + noise[:, :2] > 0  # [P, 2]
    malignancy = programs @ [0.8, 0.6] + noise[:, 2]
    return pd.DataFrame(
        {
            "diagnosis": _DIAGNOSES[high @ [2, 1]],
            "grade": _GRADES[np.digitize(malignancy, [-0.45, 0.45])],
        }
    )


def _survival(rng: Generator, programs: Array, censoring: float) -> pd.DataFrame:
    """Weibull times of the event, and exponential times of censoring scaled to censor the share wanted."""
    first, leave = rng.exponential(size=(len(programs), 2)).T
    first = 1000 * (first * np.exp(programs @ [-1.1, 0.8])) ** (1 / 1.5)
    ratio = first / leave
    scale = np.quantile(ratio, 1 - censoring)
    event = ratio <= scale
    return pd.DataFrame({"time": np.ceil(np.where(event, first, scale * leave)), "event": event.astype(np.int64)})


def _expression(rng: Generator, programs: Array, noise: float, model: _GeneModel) -> pd.DataFrame:
    drawn = rng.standard_normal((len(programs), 4 + len(model.genes)))
    factors = np.hstack([programs + noise * drawn[:, :2], drawn[:, 2:4]])  # [P, 4]
    logs = model.baseline + factors @ model.loadings + drawn[:, 4:] * model.noise  # [P, G]
    return pd.DataFrame(np.exp(logs), columns=model.genes)


def _bag(features: Array, cells: NDArray[np.int64], step: int) -> Bag:
    return Bag.from_slide(torch.from_numpy(features).float(), torch.from_numpy(cells * step), step=step)
