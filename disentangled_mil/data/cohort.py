"""A cohort: patients with slides, labels and, for some, expression."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .._checks import check_choice
from ..bags import Bag
from ._expression_tables import columns_of
from .expression import ExpressionPipeline
from .gene_sets import gene_symbol
from .hdf5 import merge_slides, read_bag, slide_width

TASKS = ("diagnosis", "grading", "survival")
TRANSFORMS = ("none", "log")

_LOG_OFFSET = 1e-6


@dataclass(frozen=True)
class StoredBag:
    """A bag that stays in its files until it is needed.

    Args:
        paths: one slide, or several, which are merged into one bag without coordinates.
        transform: ``"none"``, or ``"log"`` for features that are probabilities: log(x + 1e-6) in float32.
        drop_augmented: leave augmented patches out.
        step: side of a grid cell in the unit of the coordinates; by default from the file, see
            :func:`~.hdf5.read_bag`.
        as_set: whether coordinates of a single slide are left out too.

    Raises:
        ValueError: there is no path, the transform is unknown, or the step is not positive and finite.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.cohort import StoredBag
        >>> from disentangled_mil.data.hdf5 import write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(5, 8))
        >>> StoredBag((path,)).load().patches.shape
        torch.Size([1, 5, 8])
    """

    paths: tuple[Path, ...]
    transform: str = "none"
    drop_augmented: bool = False
    step: float | None = None
    as_set: bool = False

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must hold at least one file, got none")
        if self.step is not None and not 0 < self.step < float("inf"):
            raise ValueError(f"step must be positive and finite, got {self.step}")
        check_choice("transform", self.transform, TRANSFORMS)

    def load(self) -> Bag:
        """Read the bag.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: :func:`~.hdf5.read_bag` refuses a file, or a feature whose log is wanted is
                negative.
        """
        if len(self.paths) == 1 and not self.as_set:
            bag = read_bag(self.paths[0], drop_augmented=self.drop_augmented, step=self.step)
        else:
            bag = merge_slides(self.paths, drop_augmented=self.drop_augmented)
        if self.transform == "none":
            return bag
        patches = bag.patches.float()
        if (patches < 0).any():
            files = ", ".join(map(str, self.paths))
            raise ValueError(f"{files}: transform 'log' needs features >= 0, got {patches.min():g}")
        return Bag(torch.log(patches + _LOG_OFFSET), bag.grid)


@dataclass(frozen=True)
class Sample:
    """What a model sees at once: one bag per magnification, of one slide or of all slides of a patient.

    Args:
        name: the slide, or the patient.
        patient: whom it belongs to; metrics and splits are per patient.
        bags: the bag of every magnification, in memory or in files.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.data.cohort import Sample
        >>> sample = Sample("slide 1", "patient 1", {"20x": Bag.from_slide(torch.ones(5, 8))})
        >>> sample.load()["20x"].patches.shape
        torch.Size([1, 5, 8])
    """

    name: str
    patient: str
    bags: Mapping[str, Bag | StoredBag]

    def load(self) -> dict[str, Bag]:
        """The bag of every magnification, read if need be."""
        return {magnification: bag if isinstance(bag, Bag) else bag.load() for magnification, bag in self.bags.items()}


@dataclass(frozen=True, eq=False)
class Cohort:
    """Patients with their samples, labels and expression.

    Args:
        samples: at least one per patient.
        clinical: one row per patient, indexed by patient. Columns that tasks read, each optional:
            ``diagnosis`` and ``grade`` (text, None if missing), ``time`` and ``event`` (NaN if missing;
            event 1 = death).
        expression: patients x genes, indexed by patient; patients may be missing. None if there is none.
        gene_sets: genes of every subspace.
        expression_options: keyword arguments of :meth:`ExpressionPipeline.fit`.
        unit: what one sample is, ``"slide"`` or ``"patient"`` (all slides of a patient in one bag).

    Raises:
        ValueError: a patient is twice in a table, a sample or an expression row has no patient in
            ``clinical``, a patient has no sample, or samples differ in their magnifications.

    Example:
        >>> import pandas as pd
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.data.cohort import Cohort, Sample, task_labels
        >>> bag = Bag.from_slide(torch.ones(5, 8))
        >>> samples = tuple(Sample(f"slide {p}", p, {"10x": bag, "20x": bag}) for p in "AB")
        >>> cohort = Cohort(samples, pd.DataFrame({"grade": ["G2", None]}, index=["A", "B"]))
        >>> cohort.patients, cohort.magnifications, cohort.width
        (('A', 'B'), ('10x', '20x'), 8)
        >>> task_labels(cohort, "grading").to_dict()
        {'A': 'G2'}
    """

    samples: tuple[Sample, ...]
    clinical: pd.DataFrame
    expression: pd.DataFrame | None = None
    gene_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expression_options: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "slide"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("slide", "patient"))
        for name, table in (("clinical", self.clinical), ("expression", self.expression)):
            if table is not None and table.index.has_duplicates:
                twice = table.index[table.index.duplicated()][0]
                raise ValueError(f"{name} must hold every patient once, got {twice!r} twice")
        patients = set(self.clinical.index)
        sampled = {sample.patient for sample in self.samples}
        paired = set() if self.expression is None else set(self.expression.index)
        for name, unknown in (
            ("samples must belong to patients of clinical", sampled - patients),
            ("every patient of clinical must have a sample", patients - sampled),
            ("expression must hold patients of clinical only", paired - patients),
        ):
            if unknown:
                raise ValueError(f"{name}, got {len(unknown)} others: {', '.join(sorted(map(str, unknown))[:5])}")
        kinds = {tuple(sample.bags) for sample in self.samples}
        if len(kinds) != 1:
            listed = ", ".join(map(str, sorted(kinds))) or "no sample"
            raise ValueError(f"all samples must have the same magnifications, got {listed}")

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient, in the order of the clinical table."""
        return tuple(self.clinical.index)

    @property
    def magnifications(self) -> tuple[str, ...]:
        """Names of the magnifications, in order."""
        return tuple(self.samples[0].bags)

    @property
    def width(self) -> int:
        """Numbers per patch, the same everywhere."""
        bag = next(iter(self.samples[0].bags.values()))
        return bag.patches.shape[2] if isinstance(bag, Bag) else slide_width(bag.paths[0])

    def subset(self, patients: Iterable[str]) -> "Cohort":
        """The cohort of some patients; everything stays in its order.

        Raises:
            ValueError: there is none, or one is unknown.
        """
        chosen = set(patients)
        unknown = chosen - set(self.clinical.index)
        if unknown or not chosen:
            raise ValueError(
                f"patients must be some of the cohort's {len(self.clinical)}, "
                f"got {', '.join(sorted(map(str, unknown))[:5]) or 'none'}"
            )
        expression = self.expression
        return replace(
            self,
            samples=tuple(sample for sample in self.samples if sample.patient in chosen),
            clinical=self.clinical[self.clinical.index.isin(chosen)],
            expression=None if expression is None else expression[expression.index.isin(chosen)],
        )

    def with_expression(self) -> "Cohort":
        """The cohort of the patients who have expression.

        Raises:
            ValueError: nobody has.
        """
        return self.subset([] if self.expression is None else self.expression.index)

    def without_expression(self) -> "Cohort":
        """The cohort of the patients who have no expression; the others are left out.

        Raises:
            ValueError: everybody has.
        """
        paired = set() if self.expression is None else set(self.expression.index)
        return self.subset(patient for patient in self.patients if patient not in paired)

    def genes_found(self) -> dict[str, tuple[int, int]]:
        """For each subspace, how many of its genes the expression table has, and how many there are."""
        symbols = set() if self.expression is None else set(columns_of(self.expression))
        sets = {subspace: set(map(gene_symbol, genes)) for subspace, genes in self.gene_sets.items()}
        return {subspace: (len(genes & symbols), len(genes)) for subspace, genes in sets.items()}

    def fit_expression(self) -> ExpressionPipeline:
        """Fit the expression pipeline on this cohort's patients: call it on a training subset.

        Raises:
            ValueError: there is no expression, or :meth:`ExpressionPipeline.fit` refuses it.
        """
        if self.expression is None:
            raise ValueError("a cohort must have expression to fit its pipeline, got none")
        return ExpressionPipeline.fit(self.expression, self.gene_sets, **self.expression_options)


def task_labels(cohort: Cohort, task: str) -> pd.Series | pd.DataFrame:
    """The labels of a task for the patients who have them.

    Args:
        cohort: the cohort.
        task: ``"diagnosis"``, ``"grading"`` or ``"survival"``.

    Returns:
        Indexed by patient, in the order of the clinical table: a series of text; for survival a table with
        the columns ``time`` (as in the file, 0 included) and ``event`` (bool, True = death).

    Raises:
        ValueError: the task is unknown, the clinical table lacks its column, no patient has the label, or an
            event is not 0 or 1.

    Example: see :class:`Cohort`.
    """
    check_choice("task", task, TASKS)
    columns = {"diagnosis": ["diagnosis"], "grading": ["grade"], "survival": ["time", "event"]}[task]
    absent = [column for column in columns if column not in cohort.clinical]
    if absent:
        raise ValueError(
            f"task {task!r} needs the clinical column {absent[0]!r}, got {list(cohort.clinical)}; "
            "[clinical] of a description says which column that is"
        )
    labels = cohort.clinical[columns].dropna()
    if labels.empty:
        raise ValueError(f"task {task!r} needs at least one patient with {' and '.join(columns)}, got none")
    if task != "survival":
        return labels[columns[0]]
    for patient, event in labels["event"][~labels["event"].isin([0, 1])].head(1).items():
        raise ValueError(
            "clinical column 'event' must hold 0 (censored) or 1 (death observed), "
            f"got {event!r} for patient {patient!r}"
        )
    return labels.astype({"event": bool})
