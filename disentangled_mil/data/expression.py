"""Gene expression of patients: aligned by gene symbol, selected and scaled."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._checks import check_names, first_of
from .._errors import FileError, reading
from .._files import json_digest, read_json, replacing
from .._schema import check_state
from ._expression_files import read_expression
from ._expression_tables import SOURCE, Array, columns_of, gather, log1p_of
from ._gene_candidates import candidates_of, warn_of_lost_genes
from ._gene_names import listed, near_names
from ._gene_statistics import GeneStatistics, fit_statistics, limit
from .expression_options import ExpressionOptions
from .gene_sets import by_subspace
from .table_layout import TableLayout

__all__ = ["ExpressionOptions", "ExpressionPipeline", "GeneStatistics", "TableLayout", "read_expression"]

_FORMAT = "disentangled_mil expression 1"
_STATE = {
    "format": str,
    "options": list[tuple[str, dict[str, Any]]],
    "genes": list[tuple[str, list[str]]],
    "statistics": dict[str, tuple[float, float, float, float]],
    "sha256": str,
}

# One for all subspaces, or one for each: subspaces of several tables differ in their scale.
Options: TypeAlias = ExpressionOptions | Mapping[str, ExpressionOptions]


@dataclass(frozen=True)
class ExpressionPipeline:
    """Choice of genes, limits and scale: fitted on training patients, applied to anyone's genes by name.

    Per gene g of a subspace, with v = log1p(value) or the value itself::

        limited = clamp(v, median_g - clip * spread_g, median_g + clip * spread_g)
        out     = (limited - mean_g) / std_g        0 for a gene that is constant in training

    Build it with :meth:`fit`, or read a saved one with :meth:`load`.

    Args:
        genes: chosen genes of every subspace, in the order of the outputs.
        statistics: median, spread, mean and standard deviation of each of them.
        options: options of choice and scale, for all subspaces or by subspace.

    Raises:
        ValueError: a gene has no statistics, or a subspace no options.

    Differs from the source:
        The released code keeps the file's order, selects on all patients, and does not scale.

    Example:
        >>> import pandas as pd
        >>> from disentangled_mil.data.expression import ExpressionOptions, ExpressionPipeline
        >>> table = pd.DataFrame({"EGFR": [0.0, 9.0, 99.0], "TP53": [1.0, 1.1, 1.2], "CD2": [3.0, 1.0, 2.0]})
        >>> sets = {"tumor": ["EGFR", "TP53"], "tme": ["CD2"]}
        >>> pipeline = ExpressionPipeline.fit(table, sets, ExpressionOptions(fraction=0.5))
        >>> pipeline.genes
        {'tumor': ('EGFR',), 'tme': ('CD2',)}
        >>> pipeline.transform(table[["CD2", "EGFR"]])["tme"].shape
        torch.Size([3, 1])
    """

    genes: Mapping[str, tuple[str, ...]]
    statistics: Mapping[str, GeneStatistics]
    options: Options = field(default_factory=ExpressionOptions)

    def __post_init__(self) -> None:
        _by_subspace(self.options, self.genes)
        for subspace, genes in self.genes.items():
            unknown = [gene for gene in genes if gene not in self.statistics]
            if unknown:
                raise ValueError(f"statistics must hold every gene of {subspace!r}, but lacks {first_of(unknown)}")

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        gene_sets: Mapping[str, Sequence[str]] | Sequence[str],
        options: Options | None = None,
    ) -> "ExpressionPipeline":
        """Choose genes and learn their scale from training patients.

        The genes of each subspace that the table has are ranked by ``options.statistic``. The top
        ``options.fraction`` is kept (at least one gene; ties by name), in the order of the gene set.
        In a table of z-scores all genes vary alike, so the choice would be chance: use ``fraction=1``.

        Genes that the table may hold under another name (``HLA.A``, ``1-Mar``) are named in a warning, and so are gene
        sets whose description is a gene.

        Args:
            table: expression of the training patients x genes, e.g. from :func:`read_expression`.
            gene_sets: genes of every subspace; a plain list of genes is the one subspace ``"genes"``.
            options: options of choice and scale, for all subspaces or by subspace.

        Returns:
            The fitted pipeline.

        Raises:
            TypeError: the table is none of pandas, gene sets are no mapping and no list, a gene set is one string or
                holds something else than names, or a column holds dates.
            ValueError: fewer than two patients, one of them twice, no subspace, no gene of a subspace in the
                table, a duplicated gene under ``duplicates="error"``, a value that is not finite, a negative
                one under log1p, or a scale that ``log1p`` contradicts.

        Source:
            The paper: the top 30 % highly variable genes of shared signatures. Dispersion: Satija et al., Nature
            Biotechnology 2015, as in ``scanpy.pp.highly_variable_genes(flavor="seurat")``.
        """
        _check_table(table)
        if len(table) < 2:
            raise ValueError(f"table must hold at least two patients, got {len(table)}")
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(f"table must hold every patient once, got {twice!r} twice")
        gene_sets = by_subspace(gene_sets)
        if not gene_sets:
            raise ValueError("gene_sets must hold the genes of at least one subspace, got none")
        given = ExpressionOptions() if options is None else options
        places = columns_of(table)
        candidates = {s: candidates_of(s, members, places) for s, members in gene_sets.items()}
        warn_of_lost_genes(gene_sets, places, table.attrs.get(SOURCE))
        chosen: dict[str, tuple[str, ...]] = {}
        statistics: dict[str, GeneStatistics] = {}
        for shared, subspaces in _groups(given, candidates):
            kept, known = fit_statistics(table, {s: candidates[s] for s in subspaces}, places, shared)
            if both := statistics.keys() & known.keys():
                raise ValueError(
                    f"gene_sets of subspaces with different options must not share genes, got {min(both)!r} in "
                    "several: give the genes of the second table other names"
                )
            chosen |= kept
            statistics |= known
        return cls({s: chosen[s] for s in gene_sets}, statistics, given)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of genes of every subspace."""
        return {subspace: len(genes) for subspace, genes in self.genes.items()}

    def transform(self, table: pd.DataFrame) -> dict[str, Tensor]:
        """Align, limit and scale anyone's expression; columns are found by name, whatever their order.

        Args:
            table: expression table, patients x genes, in the unit of the training table.

        Returns:
            One float32 tensor [n, G] per subspace, rows in the order of the table.

        Raises:
            ValueError: a gene is missing under ``missing="error"`` (or all genes of a subspace under
                ``"impute"``), duplicated under ``duplicates="error"``, not finite, or negative under log1p.
        """
        _check_table(table)
        places, options = columns_of(table), _by_subspace(self.options, self.genes)
        for subspace, genes in self.genes.items():
            absent = [gene for gene in genes if gene not in places]
            strict = options[subspace].missing == "error"
            if absent and (strict or len(absent) == len(genes)):
                near = near_names(absent, [name for name in places if name not in self.statistics])
                raise ValueError(
                    f"table must hold the {len(genes)} genes of {subspace!r}, but {len(absent)} are missing: "
                    f"{first_of(absent)}"
                    + (f"; it may hold {listed(near)}" if near else "")
                    + ("; missing='impute' would allow it" if strict else "")
                )
        scaled: dict[str, Array] = {}
        for shared, subspaces in _groups(self.options, self.genes):
            wanted = {gene for subspace in subspaces for gene in self.genes[subspace]}
            names = [gene for gene in self.statistics if gene in wanted and gene in places]
            values = gather(table, names, places, shared.duplicates)
            if shared.log1p:
                values = log1p_of(values, names, table)
            known = np.array([self.statistics[gene] for gene in names]).reshape(-1, 4)
            median, spread, mean, std = known.T
            limited = limit(values, median, spread, shared.clip)
            scaled |= dict(zip(names, ((limited - mean) / np.where(std > 0, std, np.inf)).T, strict=True))
        absent_gene = np.zeros(len(table))
        return {
            subspace: torch.from_numpy(
                np.stack([scaled.get(gene, absent_gene) for gene in genes], axis=1).astype(np.float32)
            )
            for subspace, genes in self.genes.items()
        }

    @property
    def digest(self) -> str:
        """SHA-256 over options, names of subspaces and genes in order, and statistics."""
        return str(self.state()["sha256"])

    def state(self) -> dict[str, Any]:
        """The pipeline as plain JSON values, with their SHA-256 under ``"sha256"``."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "options": [[subspace, asdict(own)] for subspace, own in _by_subspace(self.options, self.genes).items()],
            "genes": [[subspace, list(genes)] for subspace, genes in self.genes.items()],
            "statistics": {gene: list(known) for gene, known in self.statistics.items()},
        }
        return {**content, "sha256": json_digest(content)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ExpressionPipeline":
        """Rebuild a pipeline from its :meth:`state`.

        Args:
            state: plain JSON values.

        Returns:
            The pipeline.

        Raises:
            FileError: the state is of another format, was changed, or a value is of the wrong type or out of range.
        """
        content = check_state(state, _STATE)
        stored = content.pop("sha256")
        if content["format"] != _FORMAT:
            raise FileError(f"format must be {_FORMAT!r}, got {content['format']!r}", key="format")
        if stored != json_digest(content):
            raise FileError("state must match its SHA-256: genes, options or statistics were changed", key="sha256")
        genes = {subspace: tuple(members) for subspace, members in content["genes"]}
        statistics = {gene: GeneStatistics(*known) for gene, known in content["statistics"].items()}
        kinds = get_type_hints(ExpressionOptions)
        with reading():
            options = {
                subspace: ExpressionOptions(**check_state(own, kinds, key=f"options.{subspace}"))
                for subspace, own in content["options"]
            }
            distinct = set(options.values())
            return cls(genes, statistics, options if len(distinct) != 1 else distinct.pop())

    def save(self, path: str | Path) -> None:
        """Write the pipeline as JSON; the file appears whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.state(), indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ExpressionPipeline":
        """Read a saved pipeline.

        Args:
            path: JSON file.

        Returns:
            The pipeline.

        Raises:
            FileNotFoundError: there is no such file.
            FileError: the file is no saved pipeline, or was changed.
        """
        with reading(path):
            return cls.from_state(read_json(Path(path), "hold one JSON object"))


def _check_table(table: object) -> None:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, patients x genes, got {type(table).__name__}")


def _by_subspace(options: Options, subspaces: Iterable[str]) -> dict[str, ExpressionOptions]:
    """The options of every subspace."""
    if isinstance(options, ExpressionOptions):
        return dict.fromkeys(subspaces, options)
    names = list(subspaces)
    check_names("options", options, names)
    return {subspace: options[subspace] for subspace in names}


def _groups(options: Options, subspaces: Iterable[str]) -> list[tuple[ExpressionOptions, list[str]]]:
    """The subspaces that share their options."""
    groups: dict[ExpressionOptions, list[str]] = {}
    for subspace, own in _by_subspace(options, subspaces).items():
        groups.setdefault(own, []).append(subspace)
    return list(groups.items())
