"""Datasets: the samples of a cohort with genes and targets, drawn in batches."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .._read_ahead import read_ahead
from ..bags import Bag, collate_samples, thin
from ..data.cohort import Cohort, Sample, columns_of_labels
from ..data.expression import ExpressionPipeline
from ..models import PatchStatistics
from ..tasks import Target, Task, select_target
from .bag_cache import BagCache
from .batch_order import batch_order
from .processes import of_each, processes, rank


class Batch(NamedTuple):
    """Several samples. Of a batch that processes share, each holds the bags and genes of its own samples only.

    Attributes:
        bags: bags of every magnification, of b samples; none if the dataset reads no slides. A process without samples
            of its own holds those of another one, which do not count.
        genes: {subspace: [b, G]}; zeros for samples without expression.
        paired: mask of the samples with expression [B].
        target: target of the task's loss, of B samples.
        rows: rows of the samples in the dataset [B].
        tiles: masks of the samples with tiles [B], by magnification.
        counts: number of samples of every process; their sum is B.
    """

    bags: dict[str, Bag]
    genes: dict[str, Tensor]
    paired: Tensor
    target: Target
    rows: Tensor
    tiles: dict[str, Tensor]
    counts: tuple[int, ...]

    def own_tiles(self, magnification: str) -> Tensor:
        """Which samples of this process have tiles at a magnification [b]."""
        there = self.bags[magnification].mask.any(1)
        return there if len(self.counts) == 1 else there & (self.counts[rank()] > 0)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(
            {name: bag.to(device) for name, bag in self.bags.items()},
            {name: genes.to(device) for name, genes in self.genes.items()},
            self.paired.to(device),
            select_target(self.target, slice(None), device),
            self.rows.to(device),
            {name: there.to(device) for name, there in self.tiles.items()},
            self.counts,
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
        self._max_tokens, self._draw, self._reads_slides = sys.maxsize, 0, True

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
        part._cache, part._max_tokens, part._draw = self._cache, self._max_tokens, self._draw
        part._reads_slides = self._reads_slides
        return part

    def thinned(self, max_tokens: int) -> "CohortDataset":
        """The dataset with at most ``max_tokens`` tokens in a bag, spread evenly over the tissue.

        Args:
            max_tokens: largest number of tokens of a bag.

        Returns:
            The dataset, with bags in memory of its own.
        """
        part = self.subset(range(len(self)))
        part._cache = self._cache.thinned(max_tokens)
        part._cache.read(part.samples, quiet=True)
        return part

    def drawn(self, max_tokens: int, draw: int) -> "CohortDataset":
        """The dataset for one epoch: as :meth:`thinned`, but the tokens are chosen when a batch is read.

        Args:
            max_tokens: largest number of tokens of a bag.
            draw: number of the draw; another number gives other tokens.

        Returns:
            The dataset, which shares the bags in memory.
        """
        part = self.subset(range(len(self)))
        part._max_tokens, part._draw = max_tokens, draw
        return part

    def without_slides(self) -> "CohortDataset":
        """The dataset for models of genes alone: its batches hold no bags, so no slide is read."""
        part = self.subset(range(len(self)))
        part._reads_slides = False
        return part

    def with_expression(self) -> "CohortDataset":
        """The dataset of the samples with expression."""
        return self.subset(torch.nonzero(self.paired)[:, 0])

    def patch_statistics(self) -> dict[str, PatchStatistics]:
        """Mean and standard deviation of the patches of every sample, by magnification, [n, C] each."""
        rows = [self._cache.facts(sample).statistics for sample in self.samples]
        return {
            name: PatchStatistics(*map(torch.stack, zip(*(row[name] for row in rows), strict=True))) for name in rows[0]
        }

    def present(self, magnification: str) -> Tensor:
        """Which samples have tiles at a magnification [n]."""
        return _with_tiles(self.samples, magnification)

    def truth(self) -> pd.DataFrame:
        """The labels of every patient: the column ``patient``, then those of the task's kind."""
        table = pd.DataFrame(self.labels)
        table.insert(0, "patient", self.patients)
        return table.drop_duplicates("patient")

    @cached_property
    def uniform(self) -> bool:
        """Whether all bags of all magnifications fill rectangles of one and the same shape, and are left whole."""
        if self._cache.larger(self.samples, self._max_tokens):
            return False
        shapes = {shape for sample in self.samples for shape in self._cache.facts(sample).rectangles.values()}
        return len(shapes) == 1 and None not in shapes

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The magnifications whose bags have no coordinates."""
        return tuple(dict.fromkeys(name for sample in self.samples for name in self._cache.facts(sample).sets))

    def batch(self, *shares: Sequence[int] | Tensor, own: int = 0) -> Batch:
        """The samples of some rows.

        Args:
            *shares: rows of every process; of a single one by default.
            own: number of this process.

        Returns:
            The batch, with bags of this process only.
        """
        parts = [torch.as_tensor(share, dtype=torch.long) for share in shares]
        rows = torch.cat(parts)
        read = parts[own] if len(parts[own]) else rows[:1]
        samples = [self.samples[int(i)] for i in rows]
        return Batch(
            collate_samples([self._bags(self.samples[int(i)]) for i in read]) if self._reads_slides else {},
            {name: values[read] for name, values in self.genes.items()},
            self.paired[rows],
            select_target(self.target, rows),
            rows,
            {name: _with_tiles(samples, name) for name in samples[0].bags},
            tuple(map(len, parts)),
        )

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All samples in batches, which a thread reads ahead.

        Args:
            size: samples per batch, over all processes.
            generator: generator of a random order, in which samples of similar size share a batch; see ``batch_order``.
                Processes share these batches. Without it samples keep their order, and every process reads all.

        Returns:
            The batches; the last one, or one of a random order, may be smaller.
        """
        if generator is None:
            return read_ahead(self.batch, torch.split(torch.arange(len(self)), size))
        tokens = [self._cache.facts(sample).tokens.values() for sample in self.samples]
        rows = batch_order([sum(min(count, self._max_tokens) for count in of) for of in tokens], size, generator)
        own, count = rank(), processes()
        # Samples of a batch may be sorted by size, so that every process takes each n-th one.
        return read_ahead(lambda batch: self.batch(*(batch[share::count] for share in range(count)), own=own), rows)

    def _bags(self, sample: Sample) -> dict[str, Bag]:
        return {name: thin(bag, self._max_tokens, seed=self._draw) for name, bag in self._cache.load(sample).items()}

    def outputs(
        self, size: int, device: torch.device | str, compute: Callable[[Batch], Sequence[Tensor]]
    ) -> list[Tensor]:
        """What a function computes of all samples; each process takes its share of the batches.

        Args:
            size: samples per batch.
            device: device of the batches.
            compute: function that returns tensors with one row for each sample of a batch.

        Returns:
            The tensors of all samples in their order, on the CPU [n, ...].
        """
        rows = torch.split(torch.arange(len(self)), size)
        own = rows[rank() :: processes()]
        parts = of_each(
            lambda: [[each.cpu() for each in compute(batch.to(device))] for batch in read_ahead(self.batch, own)]
        )
        ordered = [parts[number % len(parts)][number // len(parts)] for number in range(len(rows))]
        return [torch.cat(each) for each in zip(*ordered, strict=True)]


def _with_tiles(samples: Sequence[Sample], magnification: str) -> Tensor:
    """Which samples have tiles at a magnification [n]; bags in files always have some."""
    bags = (sample.bags[magnification] for sample in samples)
    return torch.tensor([not isinstance(bag, Bag) or bool(bag.mask.any()) for bag in bags])


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
