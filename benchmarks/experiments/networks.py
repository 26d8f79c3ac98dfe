"""Networks of others, trained by the loop of this package on the same bags, genes and folds.

ABMIL and TransMIL are those of torchmil, which are made for two classes: their last layer gets the outputs of the task.
They see the first magnification. Networks on slides and genes pool the patches by attention, as the paper's peers do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn

from disentangled_mil.tasks import Task
from disentangled_mil.train.datasets import Batch, CohortDataset
from disentangled_mil.train.loop import predict_logits, train_stage
from disentangled_mil.train.options import TrainingOptions
from disentangled_mil.train.predictions import predictions_table
from disentangled_mil.train.stages import Stage, StageLoss

from .experiment import Outcome, Trial

_TIMED = 40  # patients


class MeanPool(nn.Module):
    """Mean patch, then a linear layer."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        self.head = nn.Linear(width, outputs)

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from the mean of the real patches."""
        pooled: Tensor = (patches * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(pooled)
        return logits


class GatedABMIL(nn.Module):
    """ABMIL with gated attention; Ilse, Tomczak and Welling, ICML 2018."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        from torchmil.models import ABMIL

        embed = nn.Sequential(nn.Linear(width, options.dim), nn.ReLU(), nn.Dropout(options.dropout))
        self.model = ABMIL((width,), att_dim=options.dim, gated=True, feat_ext=embed)
        self.model.classifier = nn.Linear(options.dim, outputs)

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from the attended patch."""
        logits: Tensor = self.model(patches, mask)
        return logits


class NystromTransMIL(nn.Module):
    """TransMIL; Shao et al., NeurIPS 2021. It knows no padding, so every bag is computed by itself."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        from torchmil.models import TransMIL

        # Landmarks as in the original: half of the width. The original's other sizes suit far larger cohorts.
        self.model = TransMIL((width,), att_dim=options.dim, n_heads=options.heads, dropout=options.dropout)
        self.model.classifier = nn.Linear(options.dim, outputs)

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from the class token."""
        bags = zip(patches, mask, strict=True)
        return torch.cat([self.model(bag[real][None]).reshape(1, -1) for bag, real in bags])


class _Fused(nn.Module):
    """Attended patches [B, C] and encoded genes [B, C], before they are fused."""

    def __init__(self, width: int, genes: int, options: TrainingOptions) -> None:
        super().__init__()
        from torchmil.nn import AttentionPool

        dim = options.dim
        self.patches = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Dropout(options.dropout))
        self.pool = AttentionPool(in_dim=dim, att_dim=dim, gated=True)
        self.genes = nn.Sequential(nn.Linear(genes, dim), nn.ELU(), nn.AlphaDropout(options.gene_dropout))

    def parts(self, patches: Tensor, mask: Tensor, genes: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(self.patches(patches), mask), self.genes(genes)


class Concatenation(_Fused):
    """Attended patches beside encoded genes, then a linear layer."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__(width, genes, options)
        self.head = nn.Linear(2 * options.dim, outputs)

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from both."""
        logits: Tensor = self.head(torch.cat(self.parts(patches, mask, genes), 1))
        return logits


class GatedBilinear(_Fused):
    """Products of gated patches and gated genes; Chen et al., Pathomic Fusion, IEEE TMI 2022."""

    def __init__(self, width: int, outputs: int, genes: int, options: TrainingOptions) -> None:
        super().__init__(width, genes, options)
        small = options.dim // 2
        self.gates = nn.ModuleList(nn.Bilinear(options.dim, options.dim, small) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(options.dim, small) for _ in range(2))
        self.head = nn.Sequential(
            nn.Linear((small + 1) ** 2, options.dim), nn.ReLU(), nn.Dropout(options.dropout),
            nn.Linear(options.dim, outputs),
        )  # fmt: skip

    def forward(self, patches: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Predict from all products of the two, with a 1 appended to each."""
        both = self.parts(patches, mask, genes)
        one, two = (
            nn.functional.pad(gate(*both).sigmoid() * value(part).relu(), (0, 1), value=1.0)
            for gate, value, part in zip(self.gates, self.values, both, strict=True)
        )
        logits: Tensor = self.head(torch.einsum("bi,bj->bij", one, two).flatten(1))
        return logits


Build: TypeAlias = Callable[[int, int, int, TrainingOptions], nn.Module]


class NetworkStage(Stage):
    """A network of others and how it learns: the task loss, AdamW."""

    def __init__(self, model: nn.Module, task: Task, options: TrainingOptions, dataset: CohortDataset) -> None:
        self.model, self.task = model, task
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.mean, self.scale = _standard(dataset, options.batch_size)

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss."""
        loss = self.task.loss(self.logits(batch), batch.target)
        return StageLoss(loss, {"task": loss}, {}, {})

    def logits(self, batch: Batch) -> Tensor:
        """Predictions from the first magnification and all genes."""
        bag = next(iter(batch.bags.values()))
        genes = torch.cat(list(batch.genes.values()), 1)
        patches = torch.where(bag.mask[..., None], (bag.patches - self.mean) / self.scale, 0)
        logits: Tensor = self.model(patches, bag.mask, genes)
        return logits


@dataclass(frozen=True)
class Network:
    """Train and test one network; patients without expression train those that see slides only.

    Args:
        build: class of the network.
        genes: whether it sees genes.
    """

    build: Build
    genes: bool = False

    def __call__(self, trial: Trial) -> Outcome:
        """Train and test."""
        options, name = trial.options, trial.case.task
        train = trial.split.train.with_expression() if self.genes else trial.split.train
        task, pipeline = trial.split.train.fit_task(name), trial.split.train.fit_expression()
        datasets = [
            CohortDataset(cohort, name, task, pipeline, cache=trial.cache)
            for cohort in (train, *trial.split.tests.values())
        ]
        torch.manual_seed(options.seed)
        model = self.build(train.width, task.outputs, sum(pipeline.sizes.values()), options)
        stage = NetworkStage(model, task, options, datasets[0])
        start = time.perf_counter()
        with TemporaryDirectory(dir=trial.folder) as folder:
            train_stage("network", stage, datasets[0], None, options, Path(folder), quiet=True)
        seconds = time.perf_counter() - start
        measures = {"training s per patient": seconds / len(train.patients), **cost(stage.logits, datasets[1])}
        logits = [predict_logits(stage, dataset, options) for dataset in datasets[1:]]
        return tested(task, dict(zip(trial.split.tests, logits, strict=True)), datasets[1:], measures)


def tested(
    task: Task, logits: dict[str, Tensor], datasets: Sequence[CohortDataset], measures: dict[str, float]
) -> Outcome:
    """Metrics and predictions of every test set."""
    tables = []
    metrics = {}
    for (test, values), dataset in zip(logits.items(), datasets, strict=True):
        metrics[test] = task.metrics(values, dataset.labels, dataset.patients)
        table = predictions_table(task, task.predictions(values), dataset.patients).merge(dataset.truth(), on="patient")
        tables.append(table.assign(test=test))
    return Outcome(metrics, pd.concat(tables, ignore_index=True), measures)


@torch.no_grad()
def cost(predict: Callable[[Batch], object], dataset: CohortDataset) -> dict[str, float]:
    """Milliseconds and peak memory of a prediction, the mean over single samples."""
    batches = [dataset.batch([row]) for row in range(min(_TIMED, len(dataset)))]
    predict(batches[0])
    start = time.perf_counter()
    for batch in batches:
        predict(batch)
    seconds = time.perf_counter() - start
    peaks = [_peak(lambda: predict(batch)) for batch in batches[:5]]  # noqa: B023  (called at once)
    return {"prediction ms": 1000 * seconds / len(batches), "memory MB": sum(peaks) / len(peaks) / 1e6}


def _peak(action: Callable[[], object]) -> int:
    """The largest number of bytes that an action holds at once on the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _standard(dataset: CohortDataset, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training patches of the first magnification."""
    bags = [next(iter(batch.bags.values())) for batch in dataset.batches(batch_size)]
    patches = torch.cat([bag.patches[bag.mask].double() for bag in bags])
    return patches.mean(0).float(), patches.std(0).clamp(min=1e-6).float()
