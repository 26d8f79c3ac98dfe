"""The layout of an expression table, where it differs from patients in rows and genes in columns."""

from dataclasses import dataclass

from .._checks import check_choice, check_type

GENES_IN = ("recognized", "columns", "rows")
BARCODES = ("whole", "patient")


@dataclass(frozen=True)
class TableLayout:
    """How an expression table is laid out.

    Args:
        genes_in: place of the genes: ``"columns"``, ``"rows"``, or ``"recognized"`` from the names of genes and
            patients; columns where no name tells.
        patient: column of the patients' names in a table with genes in columns, or of ``obs`` in a ``.h5ad`` file; by
            default the first one, or the index of ``obs``.
        suffix: ending of the columns of genes, such as ``"_rnaseq"``. It is removed, and other columns are not read. By
            default all columns are genes.
        symbols: table of identifiers and symbols, for instance of Ensembl. Its first two columns are read, and versions
            do not count. Identifiers that it lacks stay.
        barcodes: treatment of TCGA barcodes: ``"whole"`` as they stand, or ``"patient"``: cut to 12 characters, and of
            several aliquots of a patient one is taken. That is a primary tumor before other tumors, never normal
            tissue, then the first vial, the analyte H, R or T, and the highest plate.

    Raises:
        TypeError: an option is no text.
        ValueError: an option is none of its choices.

    Example:
        >>> from disentangled_mil.data.table_layout import TableLayout
        >>> TableLayout(genes_in="lines")
        Traceback (most recent call last):
        ValueError: genes_in must be one of 'recognized', 'columns', 'rows', got 'lines'
    """

    genes_in: str = "recognized"
    patient: str = ""
    suffix: str = ""
    symbols: str = ""
    barcodes: str = "whole"

    def __post_init__(self) -> None:
        check_choice("genes_in", self.genes_in, GENES_IN)
        check_choice("barcodes", self.barcodes, BARCODES)
        for name in ("patient", "suffix", "symbols"):
            check_type(name, getattr(self, name), str, "text")
        if self.genes_in == "rows" and (self.patient or self.suffix):
            raise ValueError("patient and suffix belong to a table with genes in columns, got genes_in = 'rows'")
