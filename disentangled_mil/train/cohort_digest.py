"""What a run recognizes its cohort by when it is resumed: inputs exactly, and what is computed with a tolerance.

Another version of NumPy sums in another order, so that statistics differ in their last digits.
"""

import hashlib
from dataclasses import fields
from functools import cache
from math import isclose
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ..bags import Bag
from ..data.cohort import Cohort, StoredBag
from ..data.expression import ExpressionPipeline

_END = 1 << 20
_TOLERANCE = 1e-9


def cohort_identity(cohort: Cohort) -> dict[str, Any]:
    """What recognizes a cohort wherever it lies.

    Args:
        cohort: cohort whose bags are in files.

    Returns:
        The digest of the inputs, and for every subspace the means over genes of the absolute median, spread, mean and
        standard deviation, which :func:`same_values` compares.
    """
    if cohort.expression is None:
        return {"inputs": cohort_digest(cohort), "statistics": {}}
    pipeline = cohort.fit_expression()
    statistics = {
        subspace: np.abs([pipeline.statistics[gene] for gene in genes]).mean(0).tolist()
        for subspace, genes in pipeline.genes.items()
    }
    return {"inputs": cohort_digest(cohort, pipeline), "statistics": statistics}


def same_values(one: Any, other: Any) -> bool:
    """Whether JSON values are the same; floating-point numbers may differ by 1e-9, relative or absolute.

    Args:
        one: values.
        other: values.

    Returns:
        True if they are.

    Example:
        >>> same_values({"mean": [0.1 + 0.2], "genes": 3}, {"mean": [0.3], "genes": 3}), same_values(1, "1")
        (True, False)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(one == other)


def expression_digest(table: pd.DataFrame, pipeline: ExpressionPipeline) -> str:
    """A digest of expression as it is read, and of the genes and options of its pipeline, but not of statistics.

    Args:
        table: expression of the patients, patients x genes.
        pipeline: pipeline that was fitted on them.

    Returns:
        The digest.
    """
    digest = hashlib.sha256(repr((list(table.index), list(table.columns))).encode())
    digest.update(table.to_numpy().tobytes())
    # The rule of choice may change between versions, so its result counts as well.
    digest.update(repr((dict(pipeline.genes), pipeline.options)).encode())
    return digest.hexdigest()


def cohort_digest(cohort: Cohort, pipeline: ExpressionPipeline | None = None) -> str:
    """A digest that recognizes a cohort wherever it lies: labels, slides and their reading, expression and its options.

    A slide is recognized by its name, its size, and its first and last megabyte.

    Args:
        cohort: cohort whose bags are in files.
        pipeline: pipeline that was fitted on its expression; by default it is fitted here.

    Returns:
        The digest.
    """
    digest = hashlib.sha256()
    fingerprint = cache(_fingerprint)  # Magnifications may share their files.
    digest.update(f"{cohort.unit}\n{cohort.clinical.to_csv()}".encode())
    for sample in cohort.samples:
        for magnification, bag in sample.bags.items():
            if isinstance(bag, Bag) and not bag.mask.any():  # a magnification that the sample lacks
                digest.update(repr((sample.name, magnification)).encode())
                continue
            stored = cast(StoredBag, bag)
            files = [(path.name, fingerprint(path)) for path in map(Path, stored.paths)]
            reading = [getattr(stored, option.name) for option in fields(stored) if option.name != "paths"]
            digest.update(repr((sample.name, magnification, files, *reading)).encode())
    if cohort.expression is not None:
        digest.update(expression_digest(cohort.expression, pipeline or cohort.fit_expression()).encode())
    digest.update(repr((dict(cohort.gene_sets), cohort.expression_options)).encode())
    return digest.hexdigest()


def _fingerprint(path: Path) -> str:
    """Size of a file, and a digest of its first and last megabyte; those of all files of a folder."""
    if path.is_dir():  # zarr
        return repr(
            [(str(part.relative_to(path)), _fingerprint(part)) for part in sorted(path.rglob("*")) if part.is_file()]
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END)
        file.seek(max(len(ends), size - _END))
        ends += file.read()
    return f"{size} {hashlib.sha256(ends).hexdigest()}"
