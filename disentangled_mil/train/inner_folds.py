"""Cross-fitting of a dataset's samples: folds by patient, stratified by the labels of the task."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..data.folds import pool_rare
from ..tasks import Task
from .cross_fitting import cross_fit
from .datasets import CohortDataset

CrossFit = Callable[..., dict[str, Tensor]]


def over_folds(
    dataset: CohortDataset, task: Task, *, folds: int, repeats: int = 1, seed: int = 0, present: Tensor | None = None
) -> CrossFit:
    """:func:`~disentangled_mil.train.cross_fit` with the folds of a dataset.

    Args:
        dataset: samples.
        task: task, whose strata balance the folds; strata with fewer patients than folds are pooled.
        folds: number of folds.
        repeats: number of repeats with other folds.
        seed: seed of the folds.
        present: mask of the samples that take part [n]; by default all do.

    Returns:
        The function, to which a function that teaches is given.

    Raises:
        ValueError: there are fewer patients than folds.
    """
    takes_part = [True] * len(dataset) if present is None else present.tolist()
    of_samples = dict(zip(dataset.patients, map(str, task.strata(dataset.labels)), strict=True))
    patients = list(dict.fromkeys(patient for patient, has in zip(dataset.patients, takes_part, strict=True) if has))
    if len(patients) < folds:
        raise ValueError(f"folds must be at most the number of training patients, {len(patients)}, got {folds}")
    pooled = dict(zip(patients, pool_rare([of_samples[patient] for patient in patients], folds), strict=True))
    strata = [pooled.get(patient, of_samples[patient]) for patient in dataset.patients]
    return partial(
        cross_fit,
        patients=dataset.patients,
        strata=strata,
        folds=folds,
        repeats=repeats,
        seed=seed,
        present=present,
    )
