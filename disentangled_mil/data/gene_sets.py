"""Gene names, gene sets in the GMT format, and the subspaces that they form."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._checks import as_path, check_mapping, check_texts, did_you_mean
from .._errors import reads_file

_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{11})\.\d+(_PAR_Y)?")


def gene_symbol(name: str) -> str:
    """The name by which a gene is matched.

    The version of an Ensembl identifier is dropped: ``ENSG00000146648.18`` becomes ``ENSG00000146648``. The part
    after a bar is dropped: ``EGFR|1956`` becomes ``EGFR``, but ``?|1956`` stays, because it has no symbol. All else
    counts as it stands, including case: dots and dashes belong to ``AC012345.1``, ``RP11-34P13.7`` and ``HLA-A``.

    Args:
        name: column of an expression table, or member of a gene set.

    Returns:
        The symbol. To match other aliases, rename the columns first: ``table.rename(columns=aliases)``.

    Example:
        >>> from disentangled_mil.data.gene_sets import gene_symbol
        >>> [gene_symbol(name) for name in ("ENSG00000146648.18", "EGFR|1956", "HLA-A", "AC012345.1")]
        ['ENSG00000146648', 'EGFR', 'HLA-A', 'AC012345.1']
    """
    name = name.strip()
    symbol, bar, _ = name.partition("|")
    if bar and symbol.strip() not in ("", "?"):
        name = symbol.strip()
    return _ENSEMBL.sub(r"\1\2", name) if _ENSEMBL.fullmatch(name) else name


class GeneSets(dict[str, tuple[str, ...]]):
    """Gene sets as a mapping, with the descriptions that their file gives.

    A file without the column of descriptions has a gene there, which
    :meth:`~disentangled_mil.data.ExpressionPipeline.fit` recognizes by them.

    Args:
        sets: genes by the name of the set.
        descriptions: descriptions by the same names; a set formed from several has those of all.
        parts: genes of the sets from which a set was formed, by the same names.

    Example:
        >>> from disentangled_mil.data.gene_sets import GeneSets
        >>> GeneSets({"TME": ("CD2",)}, {"TME": ("source",)})
        {'TME': ('CD2',)}
    """

    def __init__(
        self,
        sets: Mapping[str, tuple[str, ...]],
        descriptions: Mapping[str, tuple[str, ...]],
        parts: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
    ) -> None:
        for name, given in (("sets", sets), ("descriptions", descriptions)):
            check_mapping(name, given)
            for key, texts in given.items():
                check_texts(f"{name}[{key!r}]", texts)
        if parts is not None:
            check_mapping("parts", parts)
        super().__init__(sets)
        self.descriptions = dict(descriptions)
        self.parts = dict(parts or {})


def by_subspace(gene_sets: Mapping[str, Sequence[str]] | Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Gene sets by subspace; a plain list of genes is the one subspace ``"genes"``.

    Args:
        gene_sets: genes of every subspace, or a list of genes.

    Returns:
        The genes of every subspace.

    Raises:
        TypeError: the gene sets are neither.

    Example:
        >>> from disentangled_mil.data.gene_sets import by_subspace
        >>> by_subspace(["EGFR", "CD2"])
        {'genes': ('EGFR', 'CD2')}
    """
    if isinstance(gene_sets, Mapping):
        for name, genes in gene_sets.items():
            check_texts(f"gene_sets[{name!r}]", genes)
        return gene_sets
    if isinstance(gene_sets, str) or not isinstance(gene_sets, Sequence):
        kind = type(gene_sets).__name__
        raise TypeError(f"gene_sets must be a mapping from subspace to genes, or a list of genes, got {kind}")
    wrong = [gene for gene in gene_sets if not isinstance(gene, str)]
    if wrong:
        raise TypeError(f"gene_sets must hold names of genes as text where it is a list, got {wrong[0]!r}")
    return {"genes": tuple(gene_sets)} if gene_sets else {}


@reads_file
def read_gmt(path: str | Path) -> GeneSets:
    r"""Read gene sets: one line per set, tab-separated name, description and genes.

    A line ends at a line feed, a carriage return or both; other separators of Unicode are part of a description.

    Args:
        path: ``.gmt`` file in UTF-8.

    Returns:
        The genes of every set by the name of the set, in the order of the file. A repeated gene counts once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no UTF-8 text or has no set, a set has no name or no gene, or two sets have one name.
            The message names file and line.

    Source:
        The GMT format of GSEA/MSigDB (Broad Institute).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil.data.gene_sets import read_gmt
        >>> path = Path(tempfile.mkdtemp()) / "sets.gmt"
        >>> _ = path.write_text("TUMOR\tsource\tEGFR\tTP53\nTME\tsource\tCD2\n")
        >>> read_gmt(path)
        {'TUMOR': ('EGFR', 'TP53'), 'TME': ('CD2',)}
    """
    path = as_path("path", path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text: {error}") from error
    if "\0" in content or content.lstrip().startswith("<"):
        came = "a NUL character" if "\0" in content else "a page of HTML or XML; download the file again"
        raise ValueError(f"{path}: must be text with one gene set per line, got {came}")
    lines = re.split(r"\r\n|\r|\n", content)
    sets: dict[str, tuple[str, ...]] = {}
    descriptions: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = (cell.strip() for cell in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if not name or not genes:
            raise ValueError(
                f"{path}, line {number}: a gene set must have a name, a description and at least one gene, "
                f"tab-separated, got {line[:60]!r}"
            )
        if name in sets:
            raise ValueError(f"{path}, line {number}: gene sets must have different names, got {name!r} twice")
        sets[name], descriptions[name] = genes, (rest[0],)
    if not sets:
        raise ValueError(f"{path}: must hold at least one gene set, got none")
    return GeneSets(sets, descriptions)


def gene_subspaces(sets: Mapping[str, Sequence[str]], choice: Mapping[str, Sequence[str]]) -> GeneSets:
    """Form subspaces from gene sets: each subspace is the union of its sets.

    Args:
        sets: genes by set name, e.g. from :func:`read_gmt`.
        choice: names of the sets of every subspace, subspaces in order.

    Returns:
        The genes of every subspace in the order of its sets, without repetition. Subspaces may share genes.

    Raises:
        TypeError: an argument is no mapping from names to several names.
        ValueError: there is no subspace, one has no set, or a set is unknown.

    Example:
        >>> from disentangled_mil.data.gene_sets import gene_subspaces
        >>> sets = {"CLASSICAL": ("EGFR", "SOX9"), "NEURAL": ("SOX9", "SYT1"), "IMMUNE": ("CD2",)}
        >>> gene_subspaces(sets, {"tumor": ["CLASSICAL", "NEURAL"], "tme": ["IMMUNE"]})
        {'tumor': ('EGFR', 'SOX9', 'SYT1'), 'tme': ('CD2',)}
    """
    for argument, given in (("sets", sets), ("choice", choice)):
        check_mapping(argument, given)
        for key, texts in given.items():
            check_texts(f"{argument}[{key!r}]", texts)
    if not choice:
        raise ValueError("choice must name the gene sets of at least one subspace, got none")
    for subspace, names in choice.items():
        unknown = [name for name in names if name not in sets]
        if unknown or not names:
            raise ValueError(
                f"subspace {subspace!r} must name at least one of the gene sets {', '.join(sets)}, "
                f"got {', '.join(unknown) or 'none'}{did_you_mean(unknown[0], sets) if unknown else ''}"
            )
    known = sets.descriptions if isinstance(sets, GeneSets) else {}
    return GeneSets(
        {
            subspace: tuple(dict.fromkeys(gene for name in names for gene in sets[name]))
            for subspace, names in choice.items()
        },
        {subspace: tuple(text for name in names for text in known.get(name, ())) for subspace, names in choice.items()},
        {subspace: {name: tuple(sets[name]) for name in names} for subspace, names in choice.items()},
    )
