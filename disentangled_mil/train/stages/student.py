"""Stage II: the student, which sees slides only."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ...losses import DistillationTargets, SubspaceDistillation, balance_shares
from ...models import Student, StudentBranchOutput, StudentOutput
from ...nn import ITA
from ...ops import match_prototypes
from ...tasks import Task
from ..datasets import Batch, CohortDataset
from ..options import TrainingOptions
from ..processes import processes
from .stage import Stage, StageLoss, adamw, branch_loss, gate_shares, of_all_processes


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
        # Rounding removes an error that could lift a whole number just above itself.
        warmup = math.ceil(round(options.task_warmup * options.epochs, 6))
        self.first_distilled = min(warmup, options.epochs - 1)
        self.optimizer = adamw(model, options, options.student_weight_decay)
        self.distillation = SubspaceDistillation(
            task.link,
            temperature=options.temperature,
            prediction_weight=options.prediction_weight,
            representation_weight=options.representation_weight,
            share_weight=options.share_weight,
            matching="slot",
        )
        self._shared = processes() > 1
        if self._shared:
            for layer in self._aggregations.values():
                layer.self_following = False

    @property
    def _aggregations(self) -> dict[str, ITA]:
        return {name: cast(ITA, self.model.get_submodule(f"branches.{name}.aggregate")) for name in self.model.branches}

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
        shares = self.options.share_weight and all(targets.shares is not None for targets in self.targets.values())
        if not vectors and not shares:
            return
        self.model.eval()
        device = next(self.model.parameters()).device

        def compute(batch: Batch) -> list[Tensor]:
            branches = self.model(batch.bags).branches
            return [branches[name].prototypes if vectors else _shares(branches[name]) for name in self.targets or ()]

        collected = train.outputs(self.options.batch_size, device, compute)
        for (name, targets), own in zip(self.targets.items(), collected, strict=True):
            pair = [own.to(device), cast(Tensor, targets.subspaces if vectors else targets.shares)]
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
        output = of_all_processes(output, batch, ("logits", "subspace_logits", "prototypes", "centers"))
        if self._shared:
            # Anchors follow the bags of all processes.
            for name, layer in self._aggregations.items():
                layer.follow(output.branches[name].prototypes, output.branches[name].centers >= 0)
        task = branch_loss(self.task, output, batch, self.options)
        if self.targets is None or not self.complete(epoch):
            return StageLoss(task, {"task": task}, {}, gate_shares(output))
        prediction = representation = share = distilled = task.new_zeros(())
        for name, branch in output.branches.items():
            targets = self.targets[name].select(batch.rows)
            targets = replace(targets, present=targets.present & batch.tiles[name])
            loss = self.distillation(branch.logits, branch.prototypes, targets, _shares(branch))
            prediction, representation = prediction + loss.prediction, representation + loss.representation
            share, distilled = share + loss.share, distilled + loss.total
        parts = {"task": task, "prediction": prediction}
        if all(targets.subspaces is not None for targets in self.targets.values()):
            parts["representation"] = representation
        if self.options.share_weight:
            parts["share"] = share
        return StageLoss(task + distilled, parts, {}, gate_shares(output))

    def logits(self, batch: Batch) -> Tensor:
        """Predictions of the model."""
        logits: Tensor = self.model(batch.bags).logits
        return logits


def _shares(branch: StudentBranchOutput) -> Tensor:
    """The share of each subspace in the logits [B, S, K]."""
    return torch.stack(list(branch.subspace_logits.values()), 1)
