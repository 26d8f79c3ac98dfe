"""The sections [expression], [genes] and [omics.NAME]: tables of patients x genes with the subspaces that they form.

Several tables become one. The columns of [expression] keep their names, and those of [omics.NAME] are ``NAME:GENE``, in
the gene sets too. A patient counts as paired if every table has the patient.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .._checks import check_subspaces, first_of
from .._errors import reading
from ._barcodes import tcga_patient
from ._expression_files import read_expression_file
from ._expression_tables import SOURCE
from ._matrix_files import Names
from ._scale import SCALES, recognize_scale
from ._section import Section
from .expression_options import ExpressionOptions
from .gene_sets import GeneSets, gene_subspaces, gene_symbol, read_gmt
from .table_layout import TableLayout

# What tables of a stated scale look like; one without an entry may look like anything.
_LOOKS = {
    "counts": ("counts", "linear", "unknown"),
    "linear": ("counts", "linear", "fractions", "unknown"),
    "log": ("log", "centered", "z-scores", "fractions", "unknown"),
    "centered": ("log", "centered", "z-scores", "unknown"),
    "z-scores": ("centered", "z-scores", "unknown"),
    "fractions": ("fractions", "unknown"),
}


class Omics(NamedTuple):
    """The tables of a description as one.

    Attributes:
        table: patients x genes.
        gene_sets: genes of every subspace.
        options: options of choice and scale, for all subspaces or by subspace.
        notes: sentences that say what was recognized.
    """

    table: pd.DataFrame
    gene_sets: GeneSets
    options: ExpressionOptions | dict[str, ExpressionOptions]
    notes: tuple[str, ...]


class _Part(NamedTuple):
    """One table."""

    name: str
    table: pd.DataFrame
    gene_sets: GeneSets
    options: ExpressionOptions
    notes: list[str]


def read_omics(folder: Path, description: Section, patients: Collection[str]) -> Omics | None:
    """Read the tables and gene sets of a description.

    Args:
        folder: folder of the description.
        description: whole description.
        patients: patients of the clinical table.

    Returns:
        The tables as one; None where the description has none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a key is wrong, a table or a GMT file is refused, or no patient is in the clinical table and in
            every table.
    """
    expression, genes = description.section("expression", {}), description.section("genes", {})
    omics = description.section("omics", {})
    if bool(expression.content) != bool(genes.content):
        raise ValueError(f"{description.name} [expression] and [genes] must come together, got only one of them")
    parts = [_part(folder, "", expression, genes, patients)] if expression.content else []
    for name, section in omics.sections().items():
        parts.append(_part(folder, name, section, section.section("genes"), patients))
    if not parts:
        return None
    subspaces = [subspace for part in parts for subspace in part.gene_sets]
    check_subspaces(subspaces, f"{description.name} subspaces of all tables")
    if len(parts) == 1 and not parts[0].name:
        only = parts[0]
        tables = Omics(only.table, only.gene_sets, only.options, tuple(only.notes))
    else:
        tables = _joined(description.name, parts)
    # The table is looked at again in training, whose errors name it.
    tables.table.attrs[SOURCE] = f"{description.name} {_names(parts)}"
    return tables


def _joined(name: str, parts: Sequence[_Part]) -> Omics:
    """Several tables as one, of the patients whom all have."""
    table = pd.concat([part.table for part in parts], axis=1, join="inner")
    if table.empty:
        raise ValueError(f"{name} the tables must have a patient in common, got none in {_names(parts)}")
    everyone = {patient for part in parts for patient in part.table.index}
    if rest := len(everyone) - len(table):
        warnings.warn(
            f"{name} {rest} of {len(everyone)} patients lack one of the tables {_names(parts)}, and count as patients "
            "without expression",
            stacklevel=5,
        )
    sets = GeneSets(
        {subspace: genes for part in parts for subspace, genes in part.gene_sets.items()},
        {subspace: texts for part in parts for subspace, texts in part.gene_sets.descriptions.items()},
        {subspace: several for part in parts for subspace, several in part.gene_sets.parts.items()},
    )
    options = {subspace: part.options for part in parts for subspace in part.gene_sets}
    return Omics(table, sets, options, tuple(note for part in parts for note in part.notes))


def _names(parts: Sequence[_Part]) -> str:
    return ", ".join(f"[omics.{part.name}]" if part.name else "[expression]" for part in parts)


def _part(folder: Path, name: str, section: Section, genes: Section, patients: Collection[str]) -> _Part:
    """One table with its gene sets."""
    source = section.file("table", folder, section.take("table", str))
    options = _options(section)
    layout = _layout(folder, section)
    section.end()
    sets = _gene_sets(folder, genes)
    symbols = {gene_symbol(gene) for members in sets.values() for gene in members}
    table, notes = read_expression_file(source, layout, Names(patients, symbols))
    with reading(source):
        table = _of_patients(source, section.name, table, patients)
    # Genes of the sets decide on the scale in training; all genes of the table tell more of it here.
    scale = recognize_scale(table.to_numpy())
    notes.append(f"scale recognized: {scale}")
    if scale.name not in _LOOKS.get(options.scale, SCALES):
        warnings.warn(
            f"{section.name} scale = {options.scale!r} is believed, and {source} looks like {scale}: "
            'correct scale and log1p, or set scale = "unknown" if this is wrong',
            stacklevel=5,
        )

    def prefixed(members: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{name}:{gene_symbol(gene)}" for gene in members)

    if name:
        table = table.set_axis([f"{name}:{gene_symbol(str(gene))}" for gene in table.columns], axis=1)
        sets = GeneSets(
            {s: prefixed(members) for s, members in sets.items()},
            {s: prefixed(texts) for s, texts in sets.descriptions.items()},
            {s: {one: prefixed(genes) for one, genes in parts.items()} for s, parts in sets.parts.items()},
        )
    return _Part(name, table, sets, options, [f"{source.name}: {note}" for note in notes])


def _of_patients(source: Path, section: str, table: pd.DataFrame, patients: Collection[str]) -> pd.DataFrame:
    """The rows of patients of the clinical table; others are left out with their count."""
    known = set(patients)
    others = [patient for patient in table.index if patient not in known]
    if not others:
        return table
    cut = sum(tcga_patient(patient) in known for patient in others)
    hint = f'; {cut} of them are TCGA barcodes of its patients: set barcodes = "patient" in {section}' if cut else ""
    if len(others) == len(table):
        raise ValueError(
            f"{source}: patients must be those of the clinical table, got {len(others)} others: "
            f"{first_of(others)}{hint or '; write both tables with the same names'}"
        )
    warnings.warn(
        f"{source}: {len(others)} of {len(table)} patients are not in the clinical table and are left out: "
        f"{first_of(others)}{hint}",
        stacklevel=6,
    )
    return table.loc[[patient in known for patient in table.index]]


def _options(section: Section) -> ExpressionOptions:
    """The options of the expression pipeline; no limit is written as inf."""
    given = section.options(asdict(ExpressionOptions()))
    if given.get("clip") == inf:
        given["clip"] = None
    try:
        return ExpressionOptions(**given)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error


def _layout(folder: Path, section: Section) -> TableLayout:
    """The layout of a table, with the path of its symbols."""
    given = section.options(asdict(TableLayout()))
    if given.get("symbols"):
        given["symbols"] = str(section.file("symbols", folder, given["symbols"]))
    try:
        return TableLayout(**given)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error


def _gene_sets(folder: Path, section: Section) -> GeneSets:
    """The genes of every subspace."""
    sets: dict[str, tuple[str, ...]] = {}
    descriptions: dict[str, tuple[str, ...]] = {}
    for file in section.files("gmt", folder):
        found = read_gmt(file)
        repeated = [name for name in found if name in sets]
        if repeated:
            raise ValueError(f"{file}: gene sets must have different names, got {repeated[0]!r} again")
        sets |= found
        descriptions |= found.descriptions
    choice = {subspace: section.texts(subspace) for subspace in section.content if subspace != "gmt"}
    if not choice:
        example = f"tumor = [{next(iter(sets))!r}]"
        raise ValueError(f"{section.name} must name the gene sets of a subspace, e.g. {example}, got only gmt")
    try:
        subspaces = gene_subspaces(GeneSets(sets, descriptions), choice)
        check_subspaces(subspaces)
    except ValueError as error:
        raise ValueError(f"{section.name} {error}") from error
    return subspaces
