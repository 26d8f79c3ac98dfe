"""The stages of the method: what one training step of each model is."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..losses import (
    DistillationTargets,
    SubspaceDistillation,
    balance_shares,
    inter_magnification_consistency,
)
from ..models import GeneNetwork, Student, StudentBranchOutput, StudentOutput, Teacher, TeacherOutput
from ..nn.attention import COMMON_RESOLUTION
from ..ops import match_prototypes
from ..optim import CGCOptimizer
from ..tasks import Task, select_target
from .datasets import Batch, CohortDataset
from .options import TrainingOptions


class StageLoss(NamedTuple):
    """A loss, its parts for the log, and the confidence of the subspaces where the stage coordinates gradients."""

    total: Tensor
    parts: dict[str, Tensor]
    confidence: dict[str, Tensor]


class BranchOutputs(NamedTuple):
    """What one magnification of a teacher says about every sample.

    Attributes:
        logits: logits [n, K].
        vectors: subspace vectors [n, S, C].
        shares: share of each subspace in the logits [n, S, K].
    """

    logits: Tensor
    vectors: Tensor
    shares: Tensor


class TeacherOutputs(NamedTuple):
    """What a teacher says about every sample.

    Attributes:
        logits: logits of the model [n, K].
        branches: outputs by magnification.
    """

    logits: Tensor
    branches: dict[str, BranchOutputs]


class Stage(ABC):
    """One model and how it learns."""

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """The loss of a batch in an epoch, counted from 0."""

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Predictions of a batch [B, K]."""

    def step(self, loss: StageLoss) -> None:
        """Apply the gradients."""
        self.optimizer.step()

    def begin_epoch(self, epoch: int, train: CohortDataset) -> None:  # noqa: B027  (nothing, for most)
        """Prepare an epoch over the training samples."""

    def complete(self, epoch: int) -> bool:
        """Whether the loss has all its parts in an epoch; only such an epoch can be kept."""
        return True


class GeneStage(Stage):
    """The baseline on genes alone."""

    model: GeneNetwork

    def __init__(self, model: GeneNetwork, task: Task, options: TrainingOptions) -> None:
        self.model, self.task = model, task
        self.optimizer = _adamw(model, options, options.weight_decay)

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss."""
        loss = self.task.loss(self.logits(batch), batch.target)
        return StageLoss(loss, {"task": loss}, {})

    def logits(self, batch: Batch) -> Tensor:
        """Predictions."""
        logits: Tensor = self.model(batch.genes).logits
        return logits


class TeacherStage(Stage):
    """Stage I: task loss of every magnification + IGC; gradients through CGC."""

    model: Teacher

    def __init__(self, model: Teacher, task: Task, options: TrainingOptions) -> None:
        self.model, self.task, self.options = model, task, options
        adamw = _adamw(model, options, options.weight_decay)
        several = len(model.subspaces) > 1
        self.coordinated = CGCOptimizer(adamw, model.subspace_parameters()) if options.cgc and several else None
        self.optimizer = self.coordinated or adamw
        self._compares = len(model.magnifications) > 1 and bool(options.consistency_weight)
        self.resolution: int | None = None

    def begin_epoch(self, epoch: int, train: CohortDataset) -> None:
        """Decide for all batches whether attention is compared on a common grid.

        Losses on a common grid and on the bags' own grids differ by orders of magnitude. If batches chose for
        themselves, those of full bags would have another weight. Bags without coordinates
        have no common places, so their attention is not compared.
        """
        if self._compares and train.sets:
            self._compares = False
            tqdm.write(f"no consistency loss: bags have no coordinates at {', '.join(train.sets)}", file=sys.stderr)
        if self._compares:
            self.resolution = None if train.uniform else COMMON_RESOLUTION

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss of the branches and inter-magnification consistency of each two."""
        output: TeacherOutput = self.model(batch.bags, batch.genes)
        branches = output.branches
        task = _task_loss(self.task, output, batch, self.options)
        parts, total = {"task": task}, task
        if self._compares:
            consistency = torch.stack(
                [
                    inter_magnification_consistency(
                        branches[a].attention,
                        branches[b].attention,
                        resolution=self.resolution,
                        present=batch.present(a) & batch.present(b),
                    )
                    for a, b in combinations(branches, 2)
                ]
            ).sum()
            parts["consistency"] = consistency
            total = total + self.options.consistency_weight * consistency
        confidence: dict[str, Tensor] = {}
        with torch.no_grad():
            for magnification, branch in branches.items():
                rows = batch.present(magnification).nonzero()[:, 0]
                if len(rows):
                    shares = {name: logits[rows] for name, logits in branch.subspace_logits.items()}
                    for name, value in self.task.confidence(shares, select_target(batch.target, rows)).items():
                        confidence[name] = confidence.get(name, 0) + value
        return StageLoss(total, parts, confidence)

    def step(self, loss: StageLoss) -> None:
        """Coordinate the gradients and apply them; the log gets the share of rows that conflict."""
        if self.coordinated is None:
            self.optimizer.step()
        else:
            self.coordinated.step(confidence=loss.confidence)
            cosines = self.coordinated.report.cosine.values()
            loss.parts["conflicts"] = torch.stack([(cosine < 0).float().mean() for cosine in cosines]).mean()

    def logits(self, batch: Batch) -> Tensor:
        """Predictions of the model."""
        logits: Tensor = self.model(batch.bags, batch.genes).logits
        return logits

    @torch.no_grad()
    def outputs(self, dataset: CohortDataset) -> TeacherOutputs:
        """The outputs for every sample, in evaluation mode, on the CPU."""
        self.model.eval()
        device = next(self.model.parameters()).device
        gated: list[Tensor] = []
        branches: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in self.model.magnifications}
        for batch in dataset.batches(self.options.batch_size):
            batch = batch.to(device)
            output: TeacherOutput = self.model(batch.bags, batch.genes)
            gated.append(output.logits.cpu())
            for name, branch in output.branches.items():
                vectors, shares = (
                    torch.stack(list(of.values()), 1) for of in (branch.features, branch.subspace_logits)
                )
                branches[name].append((branch.logits.cpu(), vectors.cpu(), shares.cpu()))
        joined = {name: BranchOutputs(*map(torch.cat, zip(*parts, strict=True))) for name, parts in branches.items()}
        return TeacherOutputs(torch.cat(gated), joined)

    def targets(self, dataset: CohortDataset) -> dict[str, DistillationTargets]:
        """The targets of distillation of every sample, by magnification; they are computed once."""
        targets = {}
        for name, branch in self.outputs(dataset).branches.items():
            present = dataset.paired & dataset.present(name)
            vectors, shares = (
                dict(zip(self.model.subspaces, values.unbind(1), strict=True))
                for values in (branch.vectors, balance_shares(branch.shares, present))
            )
            of_branch = DistillationTargets.from_teacher(branch.logits, vectors, shares=shares, present=present)
            targets[name] = of_branch.to(self.options.device)
        return targets


class StudentStage(Stage):
    """Stage II: task loss of every magnification; after the warm-up also distillation, where there is a teacher."""

    model: Student

    def __init__(
        self,
        model: Student,
        task: Task,
        options: TrainingOptions,
        targets: Mapping[str, DistillationTargets] | None = None,
    ) -> None:
        self.model, self.task, self.options, self.targets = model, task, options, targets
        weight = options.prediction_weight
        if weight is None and targets is not None:
            raise ValueError("prediction_weight must be a number for a student with targets, got None")
        # Rounding removes an error that could lift a whole number just above itself.
        warmup = math.ceil(round(options.task_warmup * options.epochs, 6))
        self.first_distilled = min(warmup, options.epochs - 1)
        self.optimizer = _adamw(model, options, options.student_weight_decay)
        self.distillation = SubspaceDistillation(
            task.link,
            temperature=options.temperature,
            prediction_weight=weight or 0.0,
            representation_weight=options.representation_weight,
            share_weight=options.share_weight,
            matching="slot",
        )

    def complete(self, epoch: int) -> bool:
        """Whether distillation has begun, where there is a teacher; in the last epoch it has."""
        return self.targets is None or epoch >= self.first_distilled

    @torch.no_grad()
    def begin_epoch(self, epoch: int, train: CohortDataset) -> None:
        """When distillation begins, match prototypes and subspaces once, for the whole training set.

        A match per bag would follow the noise of the bag, and prototypes would change places before the head.
        """
        if self.targets is None or epoch != self.first_distilled:
            return
        vectors = all(targets.subspaces is not None for targets in self.targets.values())
        if not vectors and not self.options.share_weight:
            return
        self.model.eval()
        device = next(self.model.parameters()).device
        collected: dict[str, list[Tensor]] = {name: [] for name in self.targets}
        for batch in train.batches(self.options.batch_size):
            branches = self.model(batch.to(device).bags).branches
            for name, parts in collected.items():
                parts.append(branches[name].prototypes if vectors else _shares(branches[name]))
        for name, targets in self.targets.items():
            pair = [torch.cat(collected[name]), cast(Tensor, targets.subspaces if vectors else targets.shares)]
            present = targets.present & train.present(name).to(device)
            pair = [rows[present] for rows in pair]
            if not vectors:
                pair = [self._comparable(balance_shares(shares)) for shares in pair]
            order = match_prototypes(*(rows.transpose(0, 1).flatten(1)[None] for rows in pair))
            self.model.reorder(name, order[0])

    def _comparable(self, shares: Tensor) -> Tensor:
        """Shares without the constants over classes that change no probability."""
        return shares - shares.mean(2, keepdim=True) if self.task.link == "softmax" else shares

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss of the branches, and distillation into each."""
        output: StudentOutput = self.model(batch.bags)
        task = _task_loss(self.task, output, batch, self.options)
        if self.targets is None or not self.complete(epoch):
            return StageLoss(task, {"task": task}, {})
        prediction = representation = share = distilled = task.new_zeros(())
        for name, branch in output.branches.items():
            targets = self.targets[name].select(batch.rows)
            targets = targets._replace(present=targets.present & batch.present(name))
            loss = self.distillation(branch.logits, branch.prototypes, targets, _shares(branch))
            prediction, representation = prediction + loss.prediction, representation + loss.representation
            share, distilled = share + loss.share, distilled + loss.total
        parts = {"task": task, "prediction": prediction}
        if all(targets.subspaces is not None for targets in self.targets.values()):
            parts["representation"] = representation
        if self.options.share_weight:
            parts["share"] = share
        return StageLoss(task + distilled, parts, {})

    def logits(self, batch: Batch) -> Tensor:
        """Predictions of the model."""
        logits: Tensor = self.model(batch.bags).logits
        return logits


def _shares(branch: StudentBranchOutput) -> Tensor:
    """The share of each subspace in the logits [B, S, K]."""
    return torch.stack(list(branch.subspace_logits.values()), 1)


def _task_loss(task: Task, output: TeacherOutput | StudentOutput, batch: Batch, options: TrainingOptions) -> Tensor:
    """The loss of every magnification's own prediction, and of the gate's where the gate has weights to learn."""
    losses = []
    for name, branch in output.branches.items():
        rows = batch.present(name).nonzero()[:, 0]
        if len(rows):
            losses.append(task.loss(branch.logits[rows], select_target(batch.target, rows)))
    if options.gate == "learned":
        losses.append(task.loss(output.gated, batch.target))
    return torch.stack(losses).sum()


def _adamw(model: nn.Module, options: TrainingOptions, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) and scalars are not decayed. What needs no gradient was fitted already."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
