"""Highly variable genes: how they are ranked and chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

_BINS = 20

STATISTICS = ("variance", "mad", "dispersion")

Array = np.ndarray[Any, Any]


def dispersion(values: Array, names: Sequence[str]) -> Array:
    """Log dispersion of every gene, standardized among genes of a similar mean.

    The log dispersion is log(variance / mean) of the values. It is standardized within 20 bins of log1p(mean) of equal
    width. A gene alone in its bin has 1, and a constant gene minus infinity.

    Args:
        values: expression on its linear scale (counts, FPKM, TPM).
        names: names of the genes, for errors.

    Shape:
        ``values`` [n, G].

    Returns:
        The standardized log dispersion of every gene [G].

    Raises:
        ValueError: a value is negative.

    Source:
        Satija et al., Nature Biotechnology 2015, as in ``scanpy.pp.highly_variable_genes(flavor="seurat")``.

    Example:
        >>> dispersion(np.array([[1.0, 2.0], [3.0, 2.0]]), ["EGFR", "CD2"])
        array([  1., -inf])
    """
    if (values < 0).any():
        row, column = np.argwhere(values < 0)[0]
        raise ValueError(
            f"statistic 'dispersion' needs values >= 0, got {values[row, column]} "
            f"for gene {names[column]!r}: "
            f"log-transformed or z-scored tables need statistic 'variance' or 'mad'"
        )
    mean, variance = values.mean(axis=0), values.var(axis=0, ddof=1)
    varies = np.ptp(values, axis=0) > 0
    log_dispersion = np.full(len(mean), np.nan)
    log_dispersion[varies] = np.log(variance[varies] / mean[varies])
    bins = pd.Series(log_dispersion).groupby(pd.cut(np.log1p(mean), bins=_BINS, labels=False))
    center, spread = bins.transform("mean").to_numpy(), bins.transform("std").to_numpy()
    alone, alike = np.isnan(spread), spread == 0
    # Both genes of a bin of two lie 0.7071 from its mean, so such genes are ties. Rounding removes the last digits,
    # which depend on the order of the patients.
    standardized = np.round((log_dispersion - center) / np.where(alone | alike, 1.0, spread), 9)
    ranks: Array = np.where(varies, np.where(alone, 1.0, standardized), -np.inf)
    return ranks


def highest(members: Sequence[str], ranks: Mapping[str, float], fraction: float) -> tuple[str, ...]:
    """The genes of the highest ranks (at least one; ties by name), in their own order.

    Args:
        members: genes.
        ranks: rank of every gene.
        fraction: share of the genes to keep.

    Returns:
        The chosen genes.

    Example:
        >>> highest(["SYT1", "EGFR", "CD2"], {"EGFR": 9.0, "SYT1": 4.0, "CD2": 1.0}, 0.7)
        ('SYT1', 'EGFR')
    """
    count = max(1, round(fraction * len(members)))
    best = set(sorted(members, key=lambda gene: (-ranks[gene], gene))[:count])
    return tuple(gene for gene in members if gene in best)
