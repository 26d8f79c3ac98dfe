"""The description of a cohort: one TOML file that says where everything is."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._checks import check_choice
from .._errors import reads_file
from ..tasks import KINDS, Task, TaskDefinition
from ._clinical import read_clinical
from ._omics_sections import read_omics
from ._section import Section
from ._slide_section import read_samples
from .cohort import Cohort

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@reads_file
def read_cohort(path: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS) -> Cohort:
    """Read a cohort from its description, and check all but the feature values.

    Paths are relative to the description. All keys with their defaults (tables, folders, tasks and gene sets have
    none)::

        [clinical]
        table = "clinical.csv"            # .csv, .tsv or .txt, also .gz; commas, semicolons or tabs; or a list of
                                          # files, which are joined by patient
        patient = "patient_id"            # columns; a list if the tables name that of the patients differently
        slides = "slides"                 # names of the slides' files, with or without .svs, .h5 ...
        separator = ";"                   # ... and what stands between them
        # slides_by_name = true           # in place of slides: the files whose names begin with that of the patient
        rows = "patient"                  # or "slide": several rows of a patient, which agree in the labels
        barcodes = "whole"                # or "patient": cut TCGA barcodes to 12 characters
        # missing = ["", "NA"]            # cells without a value, in any case; by default the markers of spreadsheets,
                                          # pandas, R and registries: "#N/A", "n.a.", "[Not Available]", "unknown", ...
                                          # a value that a task names (classes, observed, censored) is never missing

        [tasks.grading]                   # one section per task, named as you like; none is there by default
        kind = "classification"
        column = "grade"                  # a column of the clinical table
        classes = []                      # classes in order; by default the sorted ones of the training patients
        balanced = true                   # every class has the same weight in the loss

        [tasks.survival]
        kind = "survival"
        time = "os_days"                  # any unit
        event = "event"                   # death, recurrence or any event that happens once
        observed = "1"                    # its value for an observed event, also as in 1:DECEASED ...
        censored = "0"                    # ... and for a censored time
        # censorship = "censorship"       # in place of event, observed and censored: a column in which 1 is censored
        zero_times = "refuse"             # or "keep": times of 0
        bins = 4                          # intervals of time; fewer where few events were observed
        alpha = 0.0                       # share by which censored patients are down-weighted in the loss

        [slides]
        bag = "slide"                     # or "patient": all slides of a patient in one bag
        transform = "none"                # or "log" for probabilities: log(x + 1e-6)
        drop_augmented = false            # leave augmented patches (STAMP) out
        missing = "error"                 # or "allow": a slide may lack a magnification, or have no tile there;
                                          # slides and patients without any tiles are left out

        [slides.10x]                      # one section per magnification, named as you like
        folder = "features/10x"           # holds <slide>.h5, .h5ad, .pt or .zarr, see disentangled_mil.data.slides
        # step = 448                      # side of a grid cell in the unit of the coordinates, if files lack it
        # max_tokens = 4000               # keep this number of the tiles of a larger slide, spread evenly
        # features = "uni_tiles"          # name of the features in the files, or of a table of .zarr, if it is unusual
        # coords = "coords_um"            # name of the coordinates in the files, if it is unusual

        [slides.20x]                      # magnifications may share a folder
        folder = "features/20x"

        [expression]                      # optional, together with [genes]
        table = "expression.csv.gz"       # may lack patients; .csv, .tsv, .txt, also .gz; .parquet, .h5ad
        log1p = true                      # false for log-transformed or z-scored values
        fraction = 0.3                    # of each gene set, the most variable in the training patients
        statistic = "variance"            # or "mad", "dispersion"
        clip = 10.0                       # limit in robust standard deviations; inf for none
        duplicates = "error"              # or "mean", "max", "first": columns of one symbol
        missing = "error"                 # or "impute": genes that another table lacks
        scale = "recognized"              # or "counts", "linear", "log", "centered", "z-scores", "fractions",
                                          # "unknown", which is believed; a warning says where it looks wrong
        genes_in = "recognized"           # or "columns", "rows"
        patient = ""                      # column of the patients, if it is not the first
        suffix = ""                       # ending of the genes' columns, e.g. "_rnaseq"; others are not read
        symbols = ""                      # table of identifiers and symbols, e.g. of Ensembl
        barcodes = "whole"                # or "patient": cut TCGA barcodes, take one tumor aliquot of each patient

        [genes]
        gmt = "tumor_tme.gmt"             # or a list of files
        tumor = ["TUMOR"]                 # the gene sets of each subspace, subspaces in order
        tme = ["TME"]

        [training]                        # optional: options of the training, see disentangled_mil.train.options
        # epochs = 30                     # --set epochs=30 on the command line comes before it

    Each further table is a section ``[omics.NAME]`` with the keys of ``[expression]``, and ``[omics.NAME.genes]`` with
    those of ``[genes]``. Its subspaces have names of their own. Patients who lack one of the tables count as patients
    without expression::

        [omics.cnv]
        table = "copy_numbers.csv"
        log1p = false
        fraction = 1.0

        [omics.cnv.genes]
        gmt = "drivers.gmt"
        amplified = ["ONCOGENES"]

    Several clinical tables are joined by patient. The column of slides is in one of them. A column of a task may be in
    any, and where it is in several, they agree. Of any other column, the first table counts. With ``slides_by_name``,
    the slides of a patient are the files of all magnifications whose names begin with that of the patient, before
    their end or a character that is no letter and no digit. The longest such patient has the file.

    Patients whom one of several clinical tables lacks are left out, and a warning gives their number. So are patients
    of an expression table whom the clinical table lacks, files that begin with no patient, and slides and patients
    without tiles where ``missing`` is ``"allow"``.

    Args:
        path: TOML file.
        kinds: class of every kind of task.

    Returns:
        The cohort; bags stay in their files.

    Raises:
        FileNotFoundError: the description, a table or a slide is missing.
        FileError: the description has an unknown or a missing key or a value of the wrong type; a table is
            malformed; a patient or a slide is there twice; a patient or a slide has no tiles; a task is of an unknown
            kind, or a cell is no label of it; a file of features is unreadable, empty or of another width; no patient
            of an expression table is in the clinical table. Messages name file, line, reason and remedy.

    Example:
        See the quick start.
    """
    path = Path(path)
    description = Section(f"{path}:", read_description(path))
    clinical, slides = description.section("clinical"), description.section("slides")
    task_sections = description.section("tasks", {})
    description.known.extend(("expression", "genes", "omics", "training"))
    description.end()

    tasks = {name: _task(section, kinds) for name, section in task_sections.sections().items()}
    missing = slides.content.get("missing", "error")
    clinical_table = read_clinical(path.parent, clinical, tasks, without_slides=missing == "allow")
    samples = read_samples(path.parent, slides, clinical_table)
    sampled = {sample.patient for sample in samples}
    table = clinical_table.table.loc[[patient in sampled for patient in clinical_table.table.index]]
    cohort = Cohort(
        samples,
        table,
        unit=slides.content.get("bag", "slide"),
        tasks=tasks,
        missing=missing,
    )
    omics = read_omics(path.parent, description, clinical_table.table.index)
    if omics is None:
        return cohort
    return replace(
        cohort,
        expression=omics.table.loc[[patient in sampled for patient in omics.table.index]],
        gene_sets=omics.gene_sets,
        expression_options=omics.options,
        notes=omics.notes,
    )


@reads_file
def read_description(path: str | Path) -> dict[str, Any]:
    """Read a description as it stands.

    Args:
        path: TOML file.

    Returns:
        The sections with their keys and values.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is no TOML file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file; the command init writes a description of a folder")
    try:
        content: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: must be a TOML file: {error}") from error
    return content


def described_files(path: str | Path) -> list[Path]:
    """The description, and all files that it names: tables and gene sets, but not the slides in folders.

    Args:
        path: TOML file.

    Returns:
        The files that are there.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is no TOML file.
    """
    path = Path(path)
    return [path, *(file for name in _texts(read_description(path)) if os.path.isfile(file := path.parent / name))]


def _texts(value: object) -> Iterator[str]:
    """All texts in a description."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def _task(section: Section, kinds: Mapping[str, type[Task]]) -> TaskDefinition:
    """The definition of one task."""
    name = section.take("kind", str)
    check_choice(f"{section.name} kind", name, tuple(kinds))
    kind = kinds[name]
    try:
        section.content = dict(kind.expanded(section.content))
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error
    columns = {column.key: section.take(column.key, str) for column in kind.columns}
    options = section.options(kind.options)
    section.end()
    try:
        return TaskDefinition(kind, columns, options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section.name} {error}") from error
