"""Datasets: the samples of a cohort with genes and targets, drawn in batches."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .._read_ahead import read_ahead
from ..bags import Bag, Grid, TokenSet, collate_samples
from ..data.cohort import Cohort, Sample, columns_of_labels
from ..data.expression import ExpressionPipeline
from ..tasks import Target, Task, select_target
from .bag_cache import BagCache
from .batch_order import batch_order


class Batch(NamedTuple):
    """Several samples.

    Attributes:
        bags: bags of every magnification.
        genes: {subspace: [B, G]}; zeros for samples without expression.
        paired: True where the sample has expression [B].
        target: target of the task's loss.
        rows: rows of the samples in the dataset [B].
    """

    bags: dict[str, Bag]
    genes: dict[str, Tensor]
    paired: Tensor
    target: Target
    rows: Tensor

    def present(self, magnification: str) -> Tensor:
        """Which samples have tiles at a magnification [B]."""
        return self.bags[magnification].mask.any(1)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(
            {name: bag.to(device) for name, bag in self.bags.items()},
            {name: genes.to(device) for name, genes in self.genes.items()},
            self.paired.to(device),
            select_target(self.target, slice(None), device),
            self.rows.to(device),
        )


class CohortDataset:
    """The samples of a cohort's patients who have the labels of a task, with genes and targets.

    Args:
        cohort: patients with samples and labels.
        name: name of the task in the cohort.
        task: fitted task, which turns labels into targets.
        pipeline: fitted pipeline, which turns expression into network inputs; None for a cohort without expression.
        cache: cache of bags; share one among the datasets of a cohort.

    Raises:
        ValueError: no patient has the labels, or the pipeline refuses the table.
    """

    def __init__(
        self,
        cohort: Cohort,
        name: str,
        task: Task,
        pipeline: ExpressionPipeline | None = None,
        *,
        cache: BagCache | None = None,
    ) -> None:
        labels = cohort.labels(name)
        self.samples: tuple[Sample, ...] = tuple(s for s in cohort.samples if s.patient in labels.index)
        self.patients = tuple(sample.patient for sample in self.samples)
        self.labels = columns_of_labels(labels.loc[list(self.patients)])
        self.target = task.target_of_labels(self.labels)
        self.paired, self.genes = _genes(cohort, self.patients, pipeline)
        self._cache = cache if cache is not None else BagCache()

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, rows: Sequence[int] | Tensor) -> "CohortDataset":
        """The dataset of some samples, which shares the bags in memory.

        Args:
            rows: samples, as indices.

        Returns:
            The dataset.
        """
        index = torch.as_tensor(rows)
        part: CohortDataset = object.__new__(type(self))
        part.samples = tuple(self.samples[i] for i in index.tolist())
        part.patients = tuple(sample.patient for sample in part.samples)
        part.labels = {name: [values[i] for i in index.tolist()] for name, values in self.labels.items()}
        part.target = select_target(self.target, index)
        part.paired = self.paired[index]
        part.genes = {name: values[index] for name, values in self.genes.items()}
        part._cache = self._cache
        return part

    def thinned(self, most: int) -> "CohortDataset":
        """The dataset with at most ``most`` tokens in a bag, spread evenly over the tissue.

        Args:
            most: largest number of tokens of a bag.

        Returns:
            The dataset, with bags in memory of its own.
        """
        part = self.subset(range(len(self)))
        part._cache = self._cache.thinned(most)
        return part

    def with_expression(self) -> "CohortDataset":
        """The dataset of the samples with expression."""
        return self.subset(torch.nonzero(self.paired)[:, 0])

    def mean_patches(self) -> dict[str, Tensor]:
        """The mean patch of every sample, by magnification [n, C]."""
        rows = [self._cache.mean_patches(sample) for sample in self.samples]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def present(self, magnification: str) -> Tensor:
        """Which samples have tiles at a magnification [n]; bags in files always have some."""
        bags = (sample.bags[magnification] for sample in self.samples)
        return torch.tensor([not isinstance(bag, Bag) or bool(bag.mask.any()) for bag in bags])

    def truth(self) -> pd.DataFrame:
        """The labels of every patient: the column ``patient``, then those of the task's kind."""
        table = pd.DataFrame(self.labels)
        table.insert(0, "patient", self.patients)
        return table.drop_duplicates("patient")

    @cached_property
    def uniform(self) -> bool:
        """Whether all bags of all magnifications fill rectangles of one and the same shape."""
        grids = (bag.grid for sample in self.samples for bag in self._cache.load(sample).values())
        first = next(grids)
        return (
            isinstance(first, Grid)
            and first.full
            and all(isinstance(grid, Grid) and grid.full and grid.shapes == first.shapes for grid in grids)
        )

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The magnifications whose bags have no coordinates."""
        with_sets = {
            name: None
            for sample in self.samples
            for name, bag in self._cache.load(sample).items()
            if isinstance(bag.grid, TokenSet)
        }
        return tuple(with_sets)

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """The samples of some rows."""
        index = torch.as_tensor(index)
        loaded = [self._cache.load(self.samples[int(i)]) for i in index]
        bags = collate_samples(loaded)
        genes = {name: values[index] for name, values in self.genes.items()}
        return Batch(bags, genes, self.paired[index], select_target(self.target, index), index)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All samples in batches, which a thread reads ahead.

        Args:
            size: samples per batch.
            generator: generator of a random order, in which samples of like size share a batch; see
                ``batch_order``. Without it samples keep their order.

        Returns:
            The batches; the last one, or one of a random order, may be smaller.
        """
        if generator is None:
            rows = list(torch.split(torch.arange(len(self)), size))
        else:
            rows = batch_order([self._cache.tokens(sample) for sample in self.samples], size, generator)
        return read_ahead(self.batch, rows)


def _genes(
    cohort: Cohort, patients: Sequence[str], pipeline: ExpressionPipeline | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether each sample has expression, and the network inputs; zeros where it has none."""
    if pipeline is None or cohort.expression is None:
        return torch.zeros(len(patients), dtype=torch.bool), {}
    row = {patient: i for i, patient in enumerate(cohort.expression.index)}
    paired = torch.tensor([patient in row for patient in patients])
    index = torch.tensor([row.get(patient, 0) for patient in patients])
    transformed = pipeline.transform(cohort.expression)
    return paired, {name: values[index] * paired[:, None] for name, values in transformed.items()}
