"""The description of a cohort: one TOML file that says where everything is."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path

from .._checks import check_choice, check_subspaces
from ..tasks import KINDS, Task, TaskDefinition
from ._clinical import read_clinical
from ._section import Section
from ._slide_section import read_samples
from .cohort import Cohort
from .expression import ExpressionOptions, read_expression
from .gene_sets import gene_subspaces, read_gmt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_cohort(path: str | Path, *, kinds: Mapping[str, type[Task]] = KINDS) -> Cohort:
    """Read a cohort from its description, and check all but the feature values.

    Paths are relative to the description. All keys with their defaults (tables, folders, tasks and gene sets have
    none)::

        [clinical]
        table = "clinical.csv"            # one row per patient; .csv or .tsv, also .gz
        patient = "patient_id"            # columns
        slides = "slides"                 # names of the slides' files without their suffix ...
        separator = ";"                   # ... and what stands between them
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
        time = "os_days"                  # any unit, >= 0
        event = "event"                   # death, recurrence or any event that happens once
        observed = "1"                    # its value for an observed event ...
        censored = "0"                    # ... and for a censored time
        bins = 4                          # intervals of time; fewer where few events were observed
        alpha = 0.0                       # share by which censored patients are down-weighted in the loss

        [slides]
        bag = "slide"                     # or "patient": all slides of a patient in one bag
        transform = "none"                # or "log" for probabilities: log(x + 1e-6)
        drop_augmented = false            # leave augmented patches (STAMP) out
        missing = "error"                 # or "allow": a slide may lack a magnification, or have no tile there

        [slides.10x]                      # one section per magnification, named as you like
        folder = "features/10x"           # holds <slide>.h5, .h5ad, .pt or .zarr, see disentangled_mil.data.slides
        # step = 448                      # side of a grid cell in the unit of the coordinates, if files lack it
        # max_tokens = 4000               # keep this number of the tiles of a larger slide, spread evenly

        [slides.20x]                      # magnifications may share a folder
        folder = "features/20x"

        [expression]                      # optional, together with [genes]
        table = "expression.csv.gz"       # patients x genes; may lack patients
        log1p = true                      # false for log-transformed or z-scored values
        fraction = 0.3                    # of each gene set, the most variable in the training patients
        statistic = "variance"            # or "mad", "dispersion"
        clip = 10.0                       # limit in robust standard deviations; inf for none
        duplicates = "error"              # or "mean", "max", "first": columns of one symbol
        missing = "error"                 # or "impute": genes that another table lacks

        [genes]
        gmt = "tumor_tme.gmt"             # or a list of files
        tumor = ["TUMOR"]                 # the gene sets of each subspace, subspaces in order
        tme = ["TME"]

    Args:
        path: TOML file.
        kinds: class of every kind of task.

    Returns:
        The cohort; bags stay in their files.

    Raises:
        FileNotFoundError: the description, a table or a slide is missing.
        ValueError: the description has an unknown or a missing key or a value of the wrong type; a table is
            malformed; a patient or a slide is there twice; a patient has no slide; a task is of an unknown kind, or a
            cell is no label of it; a file of features is unreadable, empty or of another width; expression
            belongs to an unknown patient. Messages name file, line and reason.

    Example:
        See the quick start.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a TOML file: {error}") from error
    description = Section(f"{path}:", content)
    clinical, slides = description.section("clinical"), description.section("slides")
    task_sections = description.section("tasks", {})
    expression, genes = description.section("expression", {}), description.section("genes", {})
    description.end()
    if bool(expression.content) != bool(genes.content):
        raise ValueError(f"{path}: [expression] and [genes] must come together, got only one of them")

    tasks = {name: _task(section, kinds) for name, section in task_sections.sections().items()}
    table, names = read_clinical(path.parent, clinical, tasks)
    samples = read_samples(path.parent, slides, names)
    unit, missing = slides.content.get("bag", "slide"), slides.content.get("missing", "error")
    if not expression.content:
        return Cohort(samples, table, unit=unit, tasks=tasks, missing=missing)
    source = expression.file("table", path.parent, expression.take("table", str))
    options = _expression_options(expression)
    values = read_expression(source)
    unknown = [patient for patient in values.index if patient not in table.index]
    if unknown:
        raise ValueError(
            f"{source}: patients must be those of the clinical table, got {len(unknown)} others: "
            f"{', '.join(unknown[:5])}"
            f"{'; its columns are patients: transpose it' if set(values.columns) & set(table.index) else ''}"
        )
    return Cohort(samples, table, values, _gene_sets(path.parent, genes), options, unit, tasks, missing)


def _task(section: Section, kinds: Mapping[str, type[Task]]) -> TaskDefinition:
    """The definition of one task."""
    name = section.take("kind", str)
    check_choice(f"{section.name} kind", name, tuple(kinds))
    kind = kinds[name]
    columns = {column.key: section.take(column.key, str) for column in kind.columns}
    options = section.options(kind.options)
    section.end()
    try:
        return TaskDefinition(kind, columns, options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section.name} {error}") from error


def _expression_options(section: Section) -> ExpressionOptions:
    """The options of the expression pipeline; no limit is written as inf."""
    given = section.options(asdict(ExpressionOptions()))
    section.end()
    if given.get("clip") == inf:
        given["clip"] = None
    try:
        return ExpressionOptions(**given)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error


def _gene_sets(folder: Path, section: Section) -> dict[str, tuple[str, ...]]:
    """The genes of every subspace."""
    files = section.content.get("gmt")
    files = section.texts("gmt") if isinstance(files, list) else [section.take("gmt", str)]
    if not files:
        raise ValueError(f"{section.name} gmt must name at least one file, got []")
    sets: dict[str, tuple[str, ...]] = {}
    for file in files:
        found = read_gmt(section.file("gmt", folder, file))
        repeated = [name for name in found if name in sets]
        if repeated:
            raise ValueError(f"{folder / file}: gene sets must have different names, got {repeated[0]!r} again")
        sets |= found
    choice = {subspace: section.texts(subspace) for subspace in section.content if subspace != "gmt"}
    if not choice:
        example = f"tumor = [{next(iter(sets))!r}]"
        raise ValueError(f"{section.name} must name the gene sets of a subspace, e.g. {example}, got only gmt")
    try:
        subspaces = gene_subspaces(sets, choice)
        check_subspaces(subspaces)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error
    return subspaces
