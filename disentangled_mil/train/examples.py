"""Samples of a cohort, ready to be drawn in batches."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ..bags import Bag, Grid, TokenSet, collate_bags
from ..data.cohort import Cohort, Sample, task_labels
from ..data.expression import ExpressionPipeline
from ..tasks import Classification, SurvivalTarget, Target, Task


class BagMemory:
    """Bags of stored samples, kept once they were read, up to a limit.

    Args:
        limit: bytes of patch features to keep; what comes after is read anew each time.
    """

    def __init__(self, limit: int = 4 << 30) -> None:
        # By identity: two cohorts may use one name. The sample is kept so that its identity is not given away.
        self._kept: dict[int, tuple[Sample, dict[str, Bag]]] = {}
        self._room = limit

    def load(self, sample: Sample) -> dict[str, Bag]:
        """The bag of every magnification."""
        if id(sample) in self._kept:
            return self._kept[id(sample)][1]
        bags = sample.load()
        size = sum(bag.patches.nbytes for bag in bags.values())
        if size <= self._room:
            self._kept[id(sample)] = sample, bags
            self._room -= size
        return bags

    def check(self, samples: Sequence[Sample], *, quiet: bool = False) -> None:
        """Read every sample once, so that a faulty file is refused before any training.

        Raises:
            ValueError: at one magnification some bags have coordinates and others have none.
        """
        first: dict[str, tuple[str, bool]] = {}
        for sample in tqdm(samples, desc="reading slides", unit="sample", disable=quiet):
            for name, bag in self.load(sample).items():
                is_set = isinstance(bag.grid, TokenSet)
                known, known_is_set = first.setdefault(name, (sample.name, is_set))
                if is_set != known_is_set:
                    without, placed = (sample.name, known) if is_set else (known, sample.name)
                    raise ValueError(
                        f"{name} bags must all have coordinates or all have none, got {without!r} without and "
                        f"{placed!r} with them"
                    )


class Batch(NamedTuple):
    """Some samples at once.

    Attributes:
        bags: the bags of every magnification.
        genes: {subspace: [B, G]}; zeros for samples without expression.
        paired: True where the sample has expression [B].
        target: what the task's loss takes.
        rows: places of the samples among the examples [B].
    """

    bags: dict[str, Bag]
    genes: dict[str, Tensor]
    paired: Tensor
    target: Target
    rows: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return Batch(
            {name: bag.to(device) for name, bag in self.bags.items()},
            {name: genes.to(device) for name, genes in self.genes.items()},
            self.paired.to(device),
            select_target(self.target, slice(None), device),
            self.rows.to(device),
        )


class Examples:
    """The samples of a cohort's patients who have the task's label, with genes and targets.

    Args:
        cohort: the patients.
        task: turns labels into targets.
        label: ``"diagnosis"``, ``"grading"`` or ``"survival"``.
        pipeline: turns expression into network inputs; None for a cohort without expression.
        memory: bags that were read already; share one among the examples of a cohort.

    Raises:
        ValueError: no patient has the label, or the pipeline refuses the table.
    """

    def __init__(
        self,
        cohort: Cohort,
        task: Task,
        label: str,
        pipeline: ExpressionPipeline | None = None,
        *,
        memory: "BagMemory | None" = None,
    ) -> None:
        labels = task_labels(cohort, label)
        self.samples: tuple[Sample, ...] = tuple(s for s in cohort.samples if s.patient in labels.index)
        self.patients = tuple(sample.patient for sample in self.samples)
        rows = labels.loc[list(self.patients)]
        if isinstance(task, Classification):
            self.labels = rows.tolist()
            self.target: Target = task.target(self.labels)
        else:
            self.labels = rows
            self.target = task.target(rows["time"].to_numpy(), event=rows["event"].to_numpy())
        self.paired, self.genes = _genes(cohort, self.patients, pipeline)
        self._memory = memory if memory is not None else BagMemory()

    def __len__(self) -> int:
        return len(self.samples)

    def truth(self) -> pd.DataFrame:
        """What was observed of every patient: the column ``patient``, then ``label``, or ``time`` and ``event``."""
        if isinstance(self.labels, pd.DataFrame):
            table = self.labels.reset_index(drop=True)
        else:
            table = pd.DataFrame({"label": self.labels})
        table.insert(0, "patient", self.patients)
        return table.drop_duplicates("patient")

    @cached_property
    def uniform(self) -> bool:
        """Whether all bags of all magnifications fill rectangles of one and the same shape."""
        grids = (bag.grid for sample in self.samples for bag in self._memory.load(sample).values())
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
            for name, bag in self._memory.load(sample).items()
            if isinstance(bag.grid, TokenSet)
        }
        return tuple(with_sets)

    def batch(self, index: Sequence[int] | Tensor) -> Batch:
        """The samples at some places."""
        index = torch.as_tensor(index)
        loaded = [self._memory.load(self.samples[int(i)]) for i in index]
        bags = {name: collate_bags([bags[name] for bags in loaded]) for name in loaded[0]}
        genes = {name: values[index] for name, values in self.genes.items()}
        return Batch(bags, genes, self.paired[index], select_target(self.target, index), index)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """All samples in batches: in their order, or shuffled by a generator."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            yield self.batch(order[start : start + size])


def select_target(target: Target, index: Tensor | slice, device: torch.device | str | None = None) -> Target:
    """Some entries of a target, on a device."""
    if isinstance(target, SurvivalTarget):
        return SurvivalTarget(*(column[index].to(device or column.device) for column in target))
    return target[index].to(device or target.device)


def _genes(
    cohort: Cohort, patients: Sequence[str], pipeline: ExpressionPipeline | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which samples have expression, and their network inputs; zeros for the others."""
    if pipeline is None or cohort.expression is None:
        return torch.zeros(len(patients), dtype=torch.bool), {}
    row = {patient: i for i, patient in enumerate(cohort.expression.index)}
    paired = torch.tensor([patient in row for patient in patients])
    index = torch.tensor([row.get(patient, 0) for patient in patients])
    transformed = pipeline.transform(cohort.expression)
    return paired, {name: values[index] * paired[:, None] for name, values in transformed.items()}
