"""The description of a cohort: one TOML file that says where everything is."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import pandas as pd

from .._checks import check_choice, check_subspaces
from ._tables import read_rows
from .cohort import TRANSFORMS, Cohort, Sample, StoredBag
from .expression import check_options, read_expression
from .gene_sets import gene_subspaces, read_gmt
from .hdf5 import slide_width

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LABELS = {"diagnosis": "diagnosis", "grade": "grade", "time": "os_days", "event": "event"}
_MISSING = (
    "",
    "NA",
    "N/A",
    "NaN",
    "None",
    "null",
    "--",
    "'--",
    "unknown",
    "not available",
    "not applicable",
    "not reported",
    "GX",
    "[Discrepancy]",
    "[Not Applicable]",
    "[Not Available]",
    "[Not Evaluated]",
    "[Unknown]",
)


def read_cohort(path: str | Path) -> Cohort:
    """Read a cohort from its description, and check all but the feature values before any training.

    Paths are relative to the description. With every default written out (only tables, folders and gene sets
    have none)::

        [clinical]
        table = "clinical.csv"            # one row per patient; .csv or .tsv, also .gz
        patient = "patient_id"            # columns
        slides = "slides"                 # names of the slides' files without .h5 ...
        separator = ";"                   # ... and what stands between them
        diagnosis = "diagnosis"           # label columns; each may be absent if it is not named here
        grade = "grade"
        time = "os_days"                  # any unit, >= 0
        event = "event"                   # 1 = death, 0 = censored
        missing = ["", "NA", "N/A", "NaN", "None", "null", "--", "'--", "unknown", "not available",
                   "not applicable", "not reported", "GX", "[Discrepancy]", "[Not Applicable]",
                   "[Not Available]", "[Not Evaluated]", "[Unknown]"]  # labels that count as none, in any case

        [slides]
        bag = "slide"                     # or "patient": all slides of a patient in one bag
        transform = "none"                # or "log" for probabilities: log(x + 1e-6)
        drop_augmented = false            # leave augmented patches (STAMP) out

        [slides.10x]                      # one section per magnification, named as you like
        folder = "features/10x"           # holds <slide>.h5
        # step = 448                      # side of a grid cell in the unit of the coordinates, if files lack it

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
        path: the TOML file.

    Returns:
        The cohort; bags stay in their files.

    Raises:
        FileNotFoundError: the description, a table or a slide is missing.
        ValueError: the description has an unknown or a missing key or a value of the wrong type; a table is
            malformed; a patient or a slide is there twice; a patient has no slide; a time is negative or an
            event neither 0 nor 1; a file of features is unreadable, empty or of another width; expression
            belongs to an unknown patient. Messages name file, line and reason.

    Example: see the quick start.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a TOML file: {error}") from error
    description = _Section(f"{path}:", content)
    clinical, slides = description.section("clinical"), description.section("slides")
    expression, genes = description.section("expression", {}), description.section("genes", {})
    description.end()
    if bool(expression.content) != bool(genes.content):
        raise ValueError(f"{path}: [expression] and [genes] must come together, got only one of them")

    table, names = _read_clinical(path.parent, clinical)
    samples = _samples(path.parent, slides, names)
    unit = slides.content.get("bag", "slide")
    if not expression.content:
        return Cohort(samples, table, unit=unit)
    source = path.parent / expression.take("table", str)
    options = _expression_options(expression)
    values = read_expression(source)
    unknown = [patient for patient in values.index if patient not in table.index]
    if unknown:
        raise ValueError(
            f"{source}: patients must be those of the clinical table, got {len(unknown)} others: "
            f"{', '.join(unknown[:5])}"
            f"{'; its columns are patients: transpose it' if set(values.columns) & set(table.index) else ''}"
        )
    return Cohort(samples, table, values, _gene_sets(path.parent, genes), options, unit)


@dataclass
class _Section:
    """A table of the description that gives out its values by type and, at the end, refuses what is left."""

    name: str
    content: dict[str, Any]
    known: list[str] = field(default_factory=list)

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """One value, of the given type; without a default it must be there."""
        self.known.append(key)
        value = self.content.get(key, default)
        if value is None:
            raise ValueError(f"{self.name} must have the key {key!r}, got {', '.join(self.content) or 'none'}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            wanted = {str: "text", bool: "true or false", float: "a number", dict: "a table"}.get(kind, "a list")
            raise ValueError(f"{self.name} {key} must be {wanted}, got {value!r}")
        return value

    def optional(self, key: str, kind: type) -> Any:
        """One value, of the given type; None where it is absent."""
        if key in self.content:
            return self.take(key, kind)
        self.known.append(key)
        return None

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of texts."""
        value: list[str] = self.take(key, list, default)
        if not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"{self.name} {key} must be a list of texts, got {value!r}")
        return value

    def section(self, key: str, default: dict[str, Any] | None = None) -> "_Section":
        """A table inside this one."""
        return _Section(f"{self.name} [{key}]", self.take(key, dict, default))

    def end(self) -> None:
        """Refuse keys that nobody took."""
        unknown = [key for key in self.content if key not in self.known]
        if unknown:
            raise ValueError(f"{self.name} has the unknown key {unknown[0]!r}; known are {', '.join(self.known)}")


def _read_clinical(folder: Path, section: _Section) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The clinical table with its labels under their own names, and the slides of every patient."""
    path = folder / section.take("table", str)
    columns = {
        "patient": section.take("patient", str, "patient_id"),
        "slides": section.take("slides", str, "slides"),
    }
    separator = section.take("separator", str, ";")
    if not separator:
        raise ValueError(f"{section.name} separator must not be empty")
    demanded = [*columns.values(), *(section.content[name] for name in _LABELS if name in section.content)]
    labels = {name: section.take(name, str, column) for name, column in _LABELS.items()}
    missing = {label.casefold() for label in section.texts("missing", list(_MISSING))}
    section.end()

    rows = read_rows(path)
    header = next(rows).cells
    labels = {name: column for name, column in labels.items() if column in header or column in demanded}
    for column in [*demanded, *labels.values()]:
        if header.count(column) != 1:
            raise ValueError(
                f"{path}: must have one column {column!r}, got {header.count(column)} among {', '.join(header)}"
            )
    others = [column for column in header if column not in {*columns.values(), *labels.values(), *_LABELS}]
    records: dict[str, dict[str, Any]] = {}
    slides: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for line, cells in rows:
        where = f"{path}, line {line}:"
        cell = dict(zip(header, map(str.strip, cells), strict=True))
        patient, names = cell[columns["patient"]], cell[columns["slides"]].split(separator)
        if not patient or patient in records:
            raise ValueError(
                f"{where} every patient must have a name and one row, got {patient!r}{' again' if patient else ''}"
            )
        slides[patient] = [name.strip() for name in names if name.strip()]
        if not slides[patient]:
            raise ValueError(f"{where} every patient must have a slide, got none for {patient!r}")
        for name in slides[patient]:
            if name in owners:
                raise ValueError(f"{where} slides must be different, got {name!r} again (of {owners[name]!r})")
            owners[name] = patient
        records[patient] = {column: cell[column] for column in others} | {
            name: _label(where, name, cell[column], missing) for name, column in labels.items()
        }
    if not records:
        raise ValueError(f"{path}: must have at least one patient, got only a header")
    return pd.DataFrame(list(records.values()), index=pd.Index(list(records), name="patient_id")), slides


def _label(where: str, name: str, cell: str, missing: Collection[str]) -> str | float | None:
    """A label as tasks read it: None or NaN if missing, in any case; times and events as numbers."""
    if name not in ("time", "event"):
        return None if cell.casefold() in missing else cell
    if cell.casefold() in missing:
        return nan
    try:
        number = float(cell)
    except ValueError:
        number = nan
    if name == "time" and not (isfinite(number) and number >= 0):
        raise ValueError(f"{where} time must be a number >= 0, got {cell!r}")
    if name == "event" and number not in (0, 1):
        raise ValueError(f"{where} event must be 0 or 1 (1 = death), got {cell!r}")
    return number


def _samples(folder: Path, section: _Section, slides: Mapping[str, list[str]]) -> tuple[Sample, ...]:
    """One sample per slide or patient, every file looked at once."""
    unit = section.take("bag", str, "slide")
    transform = section.take("transform", str, "none")
    drop_augmented = section.take("drop_augmented", bool, False)
    check_choice(f"{section.name} bag", unit, ("slide", "patient"))
    check_choice(f"{section.name} transform", transform, TRANSFORMS)
    folders: dict[str, Path] = {}
    steps: dict[str, float | None] = {}
    for magnification in [key for key in section.content if key not in section.known]:
        if not isinstance(section.content[magnification], dict):
            raise ValueError(
                f"{section.name} has the unknown key {magnification!r}; known are {', '.join(section.known)}, "
                "and a section per magnification"
            )
        part = section.section(magnification)
        folders[magnification] = folder / part.take("folder", str)
        step = steps[magnification] = part.optional("step", float)
        part.end()
        if step is not None and not 0 < step < inf:
            raise ValueError(f"{part.name} step must be positive and finite, got {step:g}")
    if not folders:
        raise ValueError(f"{section.name} must have a section per magnification, e.g. [slides.20x], got none")
    check_subspaces(folders, f"{section.name} magnifications")

    first: tuple[Path, int] | None = None
    for path in dict.fromkeys(f / f"{name}.h5" for f in folders.values() for s in slides.values() for name in s):
        width = slide_width(path)
        first = (path, width) if first is None else first
        if width != first[1]:
            raise ValueError(f"{path}: feature width must be {first[1]} as in {first[0]}, got {width}")

    def sample(name: str, patient: str, names: list[str]) -> Sample:
        bags = {
            magnification: StoredBag(
                tuple(f / f"{n}.h5" for n in names), transform, drop_augmented, steps[magnification], unit == "patient"
            )
            for magnification, f in folders.items()
        }
        return Sample(name, patient, bags)

    if unit == "patient":
        # Slides have no common coordinates, so that bags of patients are sets, also of a patient with one slide.
        return tuple(sample(patient, patient, sorted(names)) for patient, names in slides.items())
    return tuple(sample(name, patient, [name]) for patient, names in slides.items() for name in names)


def _expression_options(section: _Section) -> dict[str, Any]:
    """The keyword arguments of the expression pipeline."""
    clip = section.take("clip", float, 10.0)
    options = {
        "log1p": section.take("log1p", bool, True),
        "fraction": section.take("fraction", float, 0.3),
        "statistic": section.take("statistic", str, "variance"),
        "clip": None if clip == inf else clip,
        "duplicates": section.take("duplicates", str, "error"),
        "missing": section.take("missing", str, "error"),
    }
    section.end()
    try:
        check_options(**options)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error
    return options


def _gene_sets(folder: Path, section: _Section) -> dict[str, tuple[str, ...]]:
    """The genes of every subspace."""
    files = section.content.get("gmt")
    files = section.texts("gmt") if isinstance(files, list) else [section.take("gmt", str)]
    if not files:
        raise ValueError(f"{section.name} gmt must name at least one file, got []")
    sets: dict[str, tuple[str, ...]] = {}
    for file in files:
        found = read_gmt(folder / file)
        repeated = [name for name in found if name in sets]
        if repeated:
            raise ValueError(f"{folder / file}: gene sets must have different names, got {repeated[0]!r} again")
        sets |= found
    choice = {subspace: section.texts(subspace) for subspace in section.content if subspace != "gmt"}
    try:
        subspaces = gene_subspaces(sets, choice)
        check_subspaces(subspaces)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error
    return subspaces
