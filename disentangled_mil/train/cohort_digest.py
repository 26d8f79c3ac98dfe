"""The digest by which a run recognizes its cohort when it is resumed."""

import hashlib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import cast

from ..bags import Bag
from ..data.cohort import Cohort, StoredBag

_END = 1 << 20


def cohort_digest(cohort: Cohort) -> str:
    """A digest that recognizes a cohort wherever it lies: labels, slides and their reading, expression and its options.

    A slide is recognized by its name, its size, and its first and last megabyte.

    Args:
        cohort: cohort whose bags are in files.

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
            files = [(path.name, fingerprint(path)) for path in stored.paths]
            reading = [getattr(stored, option.name) for option in fields(stored) if option.name != "paths"]
            digest.update(repr((sample.name, magnification, files, *reading)).encode())
    if cohort.expression is not None:
        digest.update(repr((list(cohort.expression.index), list(cohort.expression.columns))).encode())
        digest.update(cohort.expression.to_numpy().tobytes())
        # The rule of choice may change between versions, so its result counts as well.
        digest.update(cohort.fit_expression().digest.encode())
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
