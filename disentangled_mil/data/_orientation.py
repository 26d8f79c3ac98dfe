"""Whether the genes of a table lie in its rows or in its columns."""

import re
from collections.abc import Callable, Collection, Sequence

from ._barcodes import tcga_patient
from .gene_sets import gene_symbol

_GENE = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?(\|.*)?|[^|]+\|\d+")
# Headers of a column of genes, without case and punctuation.
_HEADERS = """
gene genes geneid genesymbol genename hugosymbol symbol ensemblid ensemblgeneid ensembl entrezgeneid hybridizationref
compositeelementref idref probeid probe name
"""
_GENE_HEADERS = frozenset(_HEADERS.split())


def genes_in_rows(
    first: str, across: Sequence[str], down: Sequence[str], patients: Collection[str], genes: Collection[str]
) -> bool | None:
    """Recognize the place of the genes from the names in the header and in the first column.

    Args:
        first: first cell of the header.
        across: other cells of the header.
        down: cells of the first column.
        patients: names of known patients.
        genes: symbols of known genes.

    Returns:
        True for rows, False for columns, None where no name tells.

    Example:
        >>> genes_in_rows("", ["TCGA-02-0047-01A"], ["EGFR|1956", "CD2|914"], (), ())
        True
        >>> genes_in_rows("id", ["EGFR", "CD2"], ["A", "B"], (), {"EGFR"})
        False
    """

    def is_gene(name: str) -> bool:
        return gene_symbol(name) in genes or _GENE.fullmatch(name.strip()) is not None

    def is_patient(name: str) -> bool:
        return name in patients or tcga_patient(name) is not None

    rows = _share(across, is_patient) + _share(down, is_gene)
    columns = _share(across, is_gene) + _share(down, is_patient)
    if rows != columns:
        return rows > columns
    return True if is_gene_header(first) else None


def is_gene_header(cell: str) -> bool:
    """Whether a cell is the usual header of a column of genes.

    Args:
        cell: cell of a header.

    Returns:
        True for such as ``Gene_ID`` and ``Hugo Symbol``.
    """
    return re.sub(r"[^a-z]", "", cell.casefold()) in _GENE_HEADERS


def _share(names: Sequence[str], known: Callable[[str], bool]) -> float:
    return sum(map(known, names)) / max(1, len(names))
