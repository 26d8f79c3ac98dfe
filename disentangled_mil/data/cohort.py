"""A cohort: patients with slides, labels and, for some, expression."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pandas as pd

from .._checks import check_choice, check_type
from ..bags import Bag, TokenSet
from ..tasks import Labels, Task, TaskDefinition
from ._expression_tables import SOURCE, columns_of
from ._samples import Sample, StoredBag
from .expression import ExpressionOptions, ExpressionPipeline
from .gene_sets import GeneSets, by_subspace, gene_symbol
from .slide_reading import MISSING, UNITS, SlideReading, TileFacts
from .tile_ratios import usual_ratios

__all__ = ["Cohort", "Sample", "StoredBag", "columns_of_labels"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Patients with their samples, labels and expression.

    Args:
        samples: samples, at least one per patient.
        clinical: clinical table, one row per patient, indexed by patient; None or NaN where a value is missing.
        expression: expression table, patients x genes, indexed by patient; patients may be missing. None if there is
            none.
        gene_sets: genes of every subspace; a plain list of genes is the one subspace ``"genes"``.
        expression_options: options of the expression pipeline, for all subspaces or by subspace.
        unit: unit of a sample, ``"slide"`` or ``"patient"`` (all slides of a patient in one bag).
        tasks: tasks by name, whose labels are columns of ``clinical``.
        notes: sentences about what was recognized in the tables.
        missing: rule for samples without tiles at a magnification. ``"error"`` refuses them. ``"allow"`` takes those
            that have tiles at another magnification, and a model of the cohort predicts for such slides.

    Raises:
        TypeError: the gene sets are neither a mapping nor a list of genes.
        ValueError: a patient is twice in a table, a sample or an expression row has no patient in
            ``clinical``, a patient has no sample, samples differ in their magnifications, a sample has no tiles where
            it must have some, or a task needs a column that is not there.

    Example:
        >>> import pandas as pd
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.data.cohort import Cohort, Sample
        >>> from disentangled_mil.tasks import Classification
        >>> bag = Bag.from_slide(torch.ones(5, 8))
        >>> samples = tuple(Sample(f"slide {p}", p, {"10x": bag, "20x": bag}) for p in "AB")
        >>> clinical = pd.DataFrame({"grade": ["G2", None]}, index=["A", "B"])
        >>> cohort = Cohort(samples, clinical, tasks={"grading": Classification.define(column="grade")})
        >>> cohort.patients, cohort.magnifications, cohort.width
        (('A', 'B'), ('10x', '20x'), 8)
        >>> cohort.labels("grading")["label"].to_dict()
        {'A': 'G2'}
    """

    samples: tuple[Sample, ...]
    clinical: pd.DataFrame
    expression: pd.DataFrame | None = None
    gene_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expression_options: ExpressionOptions | Mapping[str, ExpressionOptions] = field(default_factory=ExpressionOptions)
    unit: str = "slide"
    tasks: Mapping[str, TaskDefinition] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: str = "error"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        check_choice("missing", self.missing, MISSING)
        object.__setattr__(self, "gene_sets", by_subspace(self.gene_sets))
        for name, table in (("clinical", self.clinical), ("expression", self.expression)):
            if table is not None:
                check_type(name, table, pd.DataFrame, "a pandas DataFrame with a row per patient")
            if table is not None and table.index.has_duplicates:
                twice = table.index[table.index.duplicated()][0]
                raise ValueError(f"{name} must hold every patient once, got {twice!r} twice")
        for sample in self.samples:
            check_type("samples", sample, Sample, "a sequence of Sample")
        for task, definition in self.tasks.items():
            check_type(f"tasks[{task!r}]", definition, TaskDefinition, "a TaskDefinition (Task.define makes one)")
        patients = set(self.clinical.index)
        sampled = {sample.patient for sample in self.samples}
        for name, unknown in (
            ("samples must belong to patients of clinical", sampled - patients),
            ("every patient of clinical must have a sample", patients - sampled),
            ("expression must hold patients of clinical only", self.paired - patients),
        ):
            if unknown:
                raise ValueError(f"{name}, got {len(unknown)} others: {', '.join(sorted(map(str, unknown))[:5])}")
        kinds = {tuple(sample.bags) for sample in self.samples}
        if len(kinds) != 1:
            listed = ", ".join(map(str, sorted(kinds))) or "no sample"
            raise ValueError(f"all samples must have the same magnifications, got {listed}")
        for sample in self.samples:
            lacking = [name for name, bag in sample.bags.items() if isinstance(bag, Bag) and not bag.mask.any()]
            if lacking and (self.missing == "error" or len(lacking) == len(sample.bags)):
                remedy = '; missing = "allow" reads the other magnifications' if len(lacking) < len(sample.bags) else ""
                raise ValueError(f"sample {sample.name!r} must have tiles, got none at {', '.join(lacking)}{remedy}")
        for task, definition in self.tasks.items():
            for column in definition.columns.values():
                if column not in self.clinical:
                    raise ValueError(f"task {task!r} needs the clinical column {column!r}, got {list(self.clinical)}")

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient, in the order of the clinical table."""
        return tuple(self.clinical.index)

    @property
    def paired(self) -> frozenset[str]:
        """The patients with expression."""
        return frozenset() if self.expression is None else frozenset(self.expression.index)

    @property
    def magnifications(self) -> tuple[str, ...]:
        """Names of the magnifications, in order."""
        return tuple(self.samples[0].bags)

    @property
    def width(self) -> int:
        """Numbers per patch, the same everywhere."""
        bag = next(iter(self.samples[0].bags.values()))
        return bag.patches.shape[2] if isinstance(bag, Bag) else bag.source().width

    def reading(self) -> SlideReading:
        """How the bags are read from files, and from which encoder and magnification, for prediction on new slides."""
        first: dict[str, Bag | StoredBag] = {}
        for sample in self.samples:
            for name, bag in sample.bags.items():
                if name not in first or not isinstance(first[name], StoredBag):
                    first[name] = bag
            if all(isinstance(bag, StoredBag) for bag in first.values()):
                break
        stored = {name: bag for name, bag in first.items() if isinstance(bag, StoredBag)}
        options = next(iter(stored.values()), StoredBag)  # The class holds the defaults.
        sources = {name: bag.source() for name, bag in stored.items()}
        placed = {
            name: sources[name].placed if name in sources else not isinstance(cast(Bag, bag).grid, TokenSet)
            for name, bag in first.items()
        }
        ratios = usual_ratios(sample.bags for sample in self.samples)
        return SlideReading(
            self.unit,
            options.transform,
            options.drop_augmented,
            self.missing,
            tuple(name for name in first if not placed[name]),
            {name: bag.max_tokens for name, bag in stored.items() if bag.max_tokens is not None},
            {name: TileFacts.of(source, ratios.get(name)) for name, source in sources.items()},
            {name: bag.features for name, bag in stored.items() if bag.features is not None},
            {name: bag.coords for name, bag in stored.items() if bag.coords is not None},
        )

    def subset(self, patients: Iterable[str]) -> "Cohort":
        """The cohort of some patients; the order of everything stays.

        Args:
            patients: identifiers of the patients.

        Returns:
            The cohort of these patients.

        Raises:
            ValueError: no patient is given, or one is unknown.
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
        """The cohort of the patients with expression.

        Returns:
            The cohort of these patients.

        Raises:
            ValueError: no patient has expression.
        """
        return self.subset(self.paired)

    def genes_found(self) -> dict[str, tuple[int, int]]:
        """For each subspace, the number of its genes in the expression table, and the number of its genes."""
        symbols = set() if self.expression is None else set(columns_of(self.expression))
        sets = {subspace: set(map(gene_symbol, genes)) for subspace, genes in self.gene_sets.items()}
        return {subspace: (len(genes & symbols), len(genes)) for subspace, genes in sets.items()}

    def genes_found_by_set(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each subspace of several gene sets, the same numbers of every set."""
        symbols = set() if self.expression is None else set(columns_of(self.expression))
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for subspace, parts in self.gene_sets.parts.items() if isinstance(self.gene_sets, GeneSets) else ():
            sets = {name: set(map(gene_symbol, genes)) for name, genes in parts.items()}
            if len(sets) > 1:
                found[subspace] = {name: (len(genes & symbols), len(genes)) for name, genes in sets.items()}
        return found

    def genes_constant(self) -> tuple[str, ...]:
        """The genes of the subspaces that have one value for all patients of the expression table."""
        if self.expression is None:
            return ()
        symbols = columns_of(self.expression)
        wanted = {gene_symbol(gene) for genes in self.gene_sets.values() for gene in genes} & set(symbols)
        varies = (self.expression.max() > self.expression.min()).to_numpy()
        return tuple(sorted(gene for gene in wanted if not varies[symbols[gene]].any()))

    def genes_absent(self) -> dict[str, tuple[str, ...]]:
        """For each subspace, its genes that the expression table lacks."""
        symbols = set() if self.expression is None else set(columns_of(self.expression))
        sets = {subspace: dict.fromkeys(map(gene_symbol, genes)) for subspace, genes in self.gene_sets.items()}
        return {subspace: tuple(gene for gene in genes if gene not in symbols) for subspace, genes in sets.items()}

    def fit_expression(self) -> ExpressionPipeline:
        """Fit the expression pipeline on this cohort's patients: call it on a training subset.

        Returns:
            The fitted pipeline.

        Raises:
            ValueError: there is no expression, or :meth:`ExpressionPipeline.fit` refuses it.
        """
        if self.expression is None:
            raise ValueError("a cohort must have expression to fit its pipeline, got none")
        try:
            return ExpressionPipeline.fit(self.expression, self.gene_sets, self.expression_options)
        except ValueError as error:
            raise ValueError(" ".join(filter(None, [self.expression.attrs.get(SOURCE), str(error)]))) from error

    def definition(self, task: str) -> TaskDefinition:
        """The definition of a task.

        Args:
            task: name of the task.

        Returns:
            Its definition.

        Raises:
            ValueError: the cohort has no such task.
        """
        if not self.tasks:
            raise ValueError(f"the cohort must define a task to use, e.g. in a section [tasks.{task}], got none")
        check_choice("task", task, tuple(self.tasks))
        return self.tasks[task]

    def labels(self, task: str) -> pd.DataFrame:
        """The labels of a task for the patients who have them.

        Args:
            task: name of the task.

        Returns:
            A table indexed by patient, in the order of the clinical table, with the columns of the task's kind:
            ``label`` for classification, ``time`` and ``event`` (True = observed) for survival.

        Raises:
            ValueError: the cohort has no such task, a value is no label, or no patient has the label.

        Example:
            See :class:`Cohort`.
        """
        definition = self.definition(task)
        columns = list(dict.fromkeys(definition.columns.values()))
        cells = self.clinical[columns].astype(object)
        rows = {}
        for patient, row in cells.where(cells.notna(), None).to_dict("index").items():
            try:
                read = definition.read(row)
            except ValueError as error:
                raise ValueError(f"clinical, patient {patient!r}: task {task!r}, {error}") from error
            if all(value is not None for value in read.values()):
                rows[patient] = read
        if not rows:
            raise ValueError(f"task {task!r} needs at least one patient with {' and '.join(columns)}, got none")
        index = pd.Index(list(rows), name=self.clinical.index.name)
        return pd.DataFrame(list(rows.values()), index=index)

    def fit_task(self, task: str) -> Task:
        """Fit a task on the labels of this cohort's patients: call it on a training subset.

        Args:
            task: name of the task.

        Returns:
            The task, with class weights or intervals of time.

        Raises:
            ValueError: there is no such task, or the labels do not allow it; the message names task and columns.
        """
        labels = columns_of_labels(self.labels(task))
        try:
            return self.definition(task).fit(labels)
        except ValueError as error:
            raise ValueError(f"task {task!r}, {error}") from error


def columns_of_labels(labels: pd.DataFrame) -> Labels:
    """A table of labels as plain lists, as tasks take them."""
    columns: dict[str, list[Any]] = labels.to_dict("list")
    return columns
