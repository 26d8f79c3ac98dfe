"""Gene expression of patients: aligned by gene symbol, selected and scaled."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._files import replacing
from ._expression_tables import Array, columns_of, first_of, gather, log1p_of, read_expression
from ._variable_genes import dispersion, highest
from .expression_options import ExpressionOptions
from .gene_sets import gene_symbol

__all__ = ["ExpressionOptions", "ExpressionPipeline", "GeneStatistics", "read_expression"]

_MAD_TO_STD = 1.4826  # of a normal distribution
_FORMAT = "disentangled_mil expression 1"


class GeneStatistics(NamedTuple):
    """Statistics of one gene over the training patients, after log1p where that applies.

    Args:
        median: median of the values.
        spread: robust standard deviation, 1.4826 times the median absolute deviation; the plain standard deviation
            where that is 0 (more than half of the patients share one value).
        mean: mean of the limited values.
        std: standard deviation of the limited values (divided by n); 0 for a constant gene.
    """

    median: float
    spread: float
    mean: float
    std: float


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
        options: options of choice and scale.

    Raises:
        ValueError: a gene has no statistics.

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
    options: ExpressionOptions = field(default_factory=ExpressionOptions)

    def __post_init__(self) -> None:
        for subspace, genes in self.genes.items():
            unknown = [gene for gene in genes if gene not in self.statistics]
            if unknown:
                raise ValueError(f"statistics must hold every gene of {subspace!r}, but lacks {first_of(unknown)}")

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame,
        gene_sets: Mapping[str, Sequence[str]],
        options: ExpressionOptions | None = None,
    ) -> "ExpressionPipeline":
        """Choose genes and learn their scale from training patients.

        The genes of each subspace that the table has are ranked by ``options.statistic``. The top
        ``options.fraction`` is kept (at least one gene; ties by name), in the order of the gene set.
        In a table of z-scores all genes vary alike, so the choice would be chance: use ``fraction=1``.

        Args:
            table: expression of the training patients x genes, e.g. from :func:`read_expression`.
            gene_sets: genes of every subspace.
            options: options of choice and scale.

        Returns:
            The fitted pipeline.

        Raises:
            TypeError: a gene set is one string, or a column holds dates.
            ValueError: fewer than two patients, one of them twice, no subspace, no gene of a subspace in the
                table, a duplicated gene under ``duplicates="error"``, a value that is not finite, or a negative
                one under log1p.

        Source:
            The paper: the top 30 % highly variable genes of shared signatures. Dispersion: Satija et al., Nature
            Biotechnology 2015, as in ``scanpy.pp.highly_variable_genes(flavor="seurat")``.
        """
        options = options or ExpressionOptions()
        if len(table) < 2:
            raise ValueError(f"table must hold at least two patients, got {len(table)}")
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(f"table must hold every patient once, got {twice!r} twice")
        if not gene_sets:
            raise ValueError("gene_sets must hold the genes of at least one subspace, got none")
        places = columns_of(table)
        candidates = {s: _candidates(s, members, places) for s, members in gene_sets.items()}
        names = list(dict.fromkeys(gene for members in candidates.values() for gene in members))
        raw = gather(table, names, places, options.duplicates)
        values = log1p_of(raw, names, table) if options.log1p else raw
        median = np.median(values, axis=0)
        mad = np.median(np.abs(values - median), axis=0)
        spread = np.where(mad > 0, _MAD_TO_STD * mad, values.std(axis=0))
        limited = _limit(values, median, spread, options.clip)
        constant = np.ptp(limited, axis=0) == 0
        mean, std = limited.mean(axis=0), np.where(constant, 0.0, limited.std(axis=0))
        by_statistic = {"variance": std**2, "mad": mad}
        score = dispersion(raw, names) if options.statistic == "dispersion" else by_statistic[options.statistic]
        ranks = dict(zip(names, score.tolist(), strict=True))
        chosen = {s: highest(members, ranks, options.fraction) for s, members in candidates.items()}
        columns = zip(*(column.tolist() for column in (median, spread, mean, std)), strict=True)
        statistics = dict(zip(names, map(GeneStatistics._make, columns), strict=True))
        kept = dict.fromkeys(gene for members in chosen.values() for gene in members)
        return cls(chosen, {gene: statistics[gene] for gene in kept}, options)

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
        places = columns_of(table)
        for subspace, genes in self.genes.items():
            absent = [gene for gene in genes if gene not in places]
            if absent and (self.options.missing == "error" or len(absent) == len(genes)):
                raise ValueError(
                    f"table must hold the {len(genes)} genes of {subspace!r}, but {len(absent)} are missing: "
                    f"{first_of(absent)}"
                    + ("; missing='impute' would allow it" if self.options.missing == "error" else "")
                )
        names = [gene for gene in self.statistics if gene in places]
        values = gather(table, names, places, self.options.duplicates)
        if self.options.log1p:
            values = log1p_of(values, names, table)
        known = np.array([self.statistics[gene] for gene in names]).reshape(-1, 4)
        median, spread, mean, std = known.T
        limited = _limit(values, median, spread, self.options.clip)
        scaled = dict(zip(names, ((limited - mean) / np.where(std > 0, std, np.inf)).T, strict=True))
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
            **asdict(self.options),
            "genes": [[subspace, list(genes)] for subspace, genes in self.genes.items()],
            "statistics": {gene: list(known) for gene, known in self.statistics.items()},
        }
        return {**content, "sha256": _sha256(content)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ExpressionPipeline":
        """Rebuild a pipeline from its :meth:`state`.

        Args:
            state: plain JSON values.

        Returns:
            The pipeline.

        Raises:
            ValueError: the state is of another format, or was changed.
        """
        content = dict(state)
        stored = content.pop("sha256", None)
        if content.pop("format", None) != _FORMAT:
            raise ValueError(f"state must be of format {_FORMAT!r}, got {state.get('format')!r}")
        if stored != _sha256({"format": _FORMAT, **content}):
            raise ValueError("state must match its SHA-256: genes, options or statistics were changed")
        genes = {subspace: tuple(members) for subspace, members in content.pop("genes")}
        statistics = {gene: GeneStatistics(*known) for gene, known in content.pop("statistics").items()}
        return cls(genes, statistics, ExpressionOptions(**content))

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
            ValueError: the file is no saved pipeline, or was changed.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(state, dict):
                raise ValueError(f"must hold one JSON object, got {type(state).__name__}")
            return cls.from_state(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _candidates(subspace: str, members: Sequence[str], places: Mapping[str, object]) -> tuple[str, ...]:
    """The genes of a set that the table has, in the order of the set."""
    if isinstance(members, str):
        raise TypeError(f"gene_sets[{subspace!r}] must be a sequence of genes, got the string {members!r}")
    symbols = dict.fromkeys(map(gene_symbol, members))
    present = tuple(symbol for symbol in symbols if symbol in places)
    if not present:
        raise ValueError(
            f"table must hold at least one of the {len(symbols)} genes of {subspace!r} "
            f"({first_of(list(symbols))}), got {first_of(list(places))}"
        )
    return present


def _limit(values: Array, median: Array, spread: Array, clip: float | None) -> Array:
    """Values no further than ``clip`` spreads from the median."""
    if clip is None:
        return values
    limited: Array = np.clip(values, median - clip * spread, median + clip * spread)
    return limited


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
