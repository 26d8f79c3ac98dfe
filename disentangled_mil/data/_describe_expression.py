"""The sections [expression] and [genes] of a description that ``init`` writes."""

from collections.abc import Iterator
from pathlib import Path

import h5py

from ._barcodes import tcga_patient
from ._column_guesses import Columns
from ._expression_files import read_expression_file
from ._matrix_files import Names
from ._scale import recognize_scale
from ._toml_text import bare, quoted, relative, shown
from .expression_options import LOGARITHMIC
from .gene_sets import gene_symbol, read_gmt
from .table_layout import TableLayout

_WIDE = 20  # columns of numbers that make a table one of expression


def expression_lines(
    guesses: dict[Path, Columns], clinical: list[Path], gmt: list[Path], frames: list[Path], base: Path
) -> Iterator[str]:
    """The first table of expression with the gene sets, or comments that say what is missing."""
    wide = [
        path
        for path, columns in guesses.items()
        if path not in clinical and columns.numeric > 0.9 and (len(columns.header) > _WIDE or columns.matched == 0)
    ]
    tables = [*sorted(wide, key=lambda path: -len(guesses[path].header)), *frames]
    own = next((path for path in clinical if guesses[path].suffix), None)
    if own is not None:
        table, layout = own, TableLayout(patient=guesses[own].patient or "", suffix=guesses[own].suffix)
    elif tables:
        table, layout = tables.pop(0), TableLayout()
    else:
        yield ""
        yield "# No table of expression was found. Students are trained on slides and labels alone."
        yield "# A teacher needs [expression] and [genes]."
        return
    sets = read_gmt(gmt[0]) if gmt else {}
    symbols = {gene_symbol(gene) for members in sets.values() for gene in members}
    note, lines = _scale(table, layout, Names((), symbols))
    mark = "" if sets else "# "
    yield ""
    if tables:
        yield f"# Other tables that may hold expression: {shown([relative(path, base) for path in tables])}"
    if not sets:
        yield "# Gene sets (a .gmt file) are needed for these two sections; none was found."
    yield f"{mark}[expression]    # {shown([note])}"
    yield f"{mark}table = {quoted(relative(table, base))}"
    if layout.suffix:
        yield f"{mark}patient = {quoted(layout.patient)}"
        yield f"{mark}suffix = {quoted(layout.suffix)}"
    for line in lines:
        yield f"{mark}{line}"
    yield ""
    yield f"{mark}[genes]"
    yield f"{mark}gmt = {quoted(relative(gmt[0], base) if gmt else 'gene_sets.gmt')}    # sets: {shown(sets)}"
    chosen = list(sets)[: 4 if len(sets) <= 4 else 2]
    for name in chosen or ["TUMOR", "TME"]:
        yield f"{mark}{bare(name.lower())} = [{quoted(name)}]    # a subspace, of one or more sets"


def holds_genes(path: Path) -> bool:
    """Whether a ``.h5ad`` file is a table of expression, and no slide: it has no coordinates, and its columns names.

    Args:
        path: file.

    Returns:
        False also where the file is not readable.
    """
    try:
        with h5py.File(path) as file:
            obs, var = file["obs"], file["var"]
            placed = "spatial" in file.get("obsm", ()) or ("x" in obs and "y" in obs)
            return not placed and not all(map(str.isdigit, var[var.attrs["_index"]].asstr()[:]))
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _scale(path: Path, layout: TableLayout, known: Names) -> tuple[str, list[str]]:
    """The scale of a table in words, and the keys that follow from it."""
    try:
        table, notes = read_expression_file(path, layout, known)
    except (ValueError, ModuleNotFoundError) as error:
        return f"not read: {error}", ["log1p = true    # false for log-transformed or z-scored values"]
    scale = recognize_scale(table.to_numpy())
    lines = [f"log1p = {str(scale.name not in LOGARITHMIC).lower()}    # scale: {scale}"]
    if scale.name == "z-scores":
        lines.append("fraction = 1.0    # z-scores vary alike, so none is chosen")
    if any(tcga_patient(str(name)) not in (None, name) for name in table.index):
        lines.append('barcodes = "patient"    # names are barcodes of samples')
    return notes[0], lines
