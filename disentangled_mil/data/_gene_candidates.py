"""Genes of a set that a table has, and hints at those that it seems to lack."""

import warnings
from collections.abc import Mapping, Sequence

from .._checks import first_of
from ._gene_names import listed, near_names
from .gene_sets import GeneSets, gene_symbol


def candidates_of(subspace: str, members: Sequence[str], places: Mapping[str, object]) -> tuple[str, ...]:
    """The genes of a set that the table has, in the order of the set."""
    if isinstance(members, str):
        raise TypeError(f"gene_sets[{subspace!r}] must be a sequence of genes, got the string {members!r}")
    for member in members:
        if not isinstance(member, str):
            raise TypeError(f"gene_sets[{subspace!r}] must hold names of genes as text, got {member!r}")
    symbols = dict.fromkeys(map(gene_symbol, members))
    present = tuple(symbol for symbol in symbols if symbol in places)
    if not present:
        raise ValueError(
            f"table must hold at least one of the {len(symbols)} genes of {subspace!r} "
            f"({first_of(list(symbols))}), got {first_of(list(places))}{_hint(list(symbols), list(places))}"
        )
    return present


def warn_of_lost_genes(
    gene_sets: Mapping[str, Sequence[str]], places: Mapping[str, object], source: str | None
) -> None:
    """Warn of genes that the table may hold under another name, and of descriptions that are genes."""
    used = {gene_symbol(member) for members in gene_sets.values() for member in members}
    unused = [name for name in places if name not in used]
    remedy = "rename them in the file" if source else "rename the columns, e.g. table.rename(columns=...)"
    for subspace, members in gene_sets.items():
        near = near_names((gene for gene in map(gene_symbol, members) if gene not in places), unused)
        if near:
            warnings.warn(
                f"{f'{source} ' if source else ''}table lacks {len(near)} genes of {subspace!r} that it may hold under "
                f"other names: {listed(near)}; {remedy}",
                stacklevel=4,
            )
    descriptions = gene_sets.descriptions if isinstance(gene_sets, GeneSets) else {}
    pairs = [(subspace, text) for subspace, texts in descriptions.items() for text in texts]
    lost = [text for subspace, text in pairs if gene_symbol(text) in places and text not in gene_sets[subspace]]
    if lost and 2 * len(lost) >= len(pairs):
        warnings.warn(
            f"gene sets need a description before their genes, and theirs are genes of the table ({first_of(lost)}), "
            "which are lost: add a column of descriptions to the GMT file",
            stacklevel=4,
        )


def _hint(wanted: Sequence[str], present: Sequence[str]) -> str:
    """A likely reason why no gene matches."""
    if near := near_names(wanted, present):
        return f"; it may hold {listed(near)}"
    kinds = [sum(name.startswith("ENS") for name in names) > len(names) / 2 for names in (wanted, present)]
    if kinds[0] != kinds[1]:
        ensembl, symbols = ("table", "gene_sets") if kinds[1] else ("gene_sets", "table")
        return f"; {ensembl} holds Ensembl identifiers and {symbols} symbols: name a table of both as symbols"
    return ""
