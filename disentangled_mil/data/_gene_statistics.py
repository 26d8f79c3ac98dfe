"""Statistics of genes over training patients: the choice of genes, their limits and their scale."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ._expression_tables import Array, gather, log1p_of
from ._scale import recognize_scale
from ._variable_genes import dispersion, highest
from .expression_options import ExpressionOptions

_MAD_TO_STD = 1.4826  # of a normal distribution


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


def fit_statistics(
    table: pd.DataFrame,
    candidates: Mapping[str, Sequence[str]],
    places: Mapping[str, list[int]],
    options: ExpressionOptions,
) -> tuple[dict[str, tuple[str, ...]], dict[str, GeneStatistics]]:
    """The chosen genes of subspaces with the same options, and their statistics."""
    names = list(dict.fromkeys(gene for members in candidates.values() for gene in members))
    raw = gather(table, names, places, options.duplicates)
    _check_scale(raw, options)
    values = log1p_of(raw, names, table) if options.log1p else raw
    median = np.median(values, axis=0)
    mad = np.median(np.abs(values - median), axis=0)
    spread = np.where(mad > 0, _MAD_TO_STD * mad, values.std(axis=0))
    limited = limit(values, median, spread, options.clip)
    constant = np.ptp(limited, axis=0) == 0
    mean, std = limited.mean(axis=0), np.where(constant, 0.0, limited.std(axis=0))
    by_statistic = {"variance": std**2, "mad": mad}
    score = dispersion(raw, names) if options.statistic == "dispersion" else by_statistic[options.statistic]
    ranks = dict(zip(names, score.tolist(), strict=True))
    chosen = {s: highest(members, ranks, options.fraction) for s, members in candidates.items()}
    columns = zip(*(column.tolist() for column in (median, spread, mean, std)), strict=True)
    statistics = dict(zip(names, map(GeneStatistics._make, columns), strict=True))
    kept = dict.fromkeys(gene for members in chosen.values() for gene in members)
    return chosen, {gene: statistics[gene] for gene in kept}


def limit(values: Array, median: Array, spread: Array, clip: float | None) -> Array:
    """Values no further than ``clip`` spreads from the median."""
    if clip is None:
        return values
    limited: Array = np.clip(values, median - clip * spread, median + clip * spread)
    return limited


def _check_scale(values: Array, options: ExpressionOptions) -> None:
    """Refuse values whose scale contradicts log1p; negative ones are refused by their patient and gene."""
    if options.scale != "recognized" or (options.log1p and (values < 0).any()):
        return
    scale = recognize_scale(values)
    if options.log1p and scale.name == "log":
        raise ValueError(
            f"log1p needs counts, TPM or FPKM, and table seems to hold {scale}: set log1p to False, or scale to "
            "'linear' if its values are linear"
        )
    if not options.log1p and scale.name in ("counts", "linear"):
        raise ValueError(
            f"log1p is False for log-transformed values and z-scores, and table seems to hold {scale}: set log1p to "
            "True, or scale to 'linear' to keep linear values"
        )
