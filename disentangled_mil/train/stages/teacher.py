"""Stage I: the teacher, which sees slides and genes."""

import sys
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...losses import DistillationTargets, balance_shares, inter_magnification_consistency
from ...models import Teacher, TeacherOutput
from ...nn.attention import COMMON_RESOLUTION
from ...optim import CGCOptimizer
from ...tasks import Task, select_target
from ..datasets import Batch, CohortDataset
from ..options import TrainingOptions
from .stage import Stage, StageLoss, adamw, branch_loss, gate_shares, of_all_processes


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


class TeacherStage(Stage):
    """Stage I: task loss of every magnification + IGC; gradients through CGC."""

    model: Teacher

    def __init__(self, model: Teacher, task: Task, options: TrainingOptions) -> None:
        self.model, self.task, self.options = model, task, options
        optimizer = adamw(model, options, options.weight_decay)
        several = len(model.subspaces) > 1
        self.coordinated = CGCOptimizer(optimizer, model.subspace_parameters()) if options.cgc and several else None
        self.optimizer = self.coordinated or optimizer
        self._compares = len(model.magnifications) > 1 and bool(options.consistency_weight)
        self.resolution: int | None = None

    def begin_epoch(self, epoch: int, train: CohortDataset) -> None:
        """Decide for all batches whether attention is compared on a common grid.

        Losses on a common grid and on the bags' own grids differ by orders of magnitude. If batches chose for
        themselves, those of full bags would have another weight. Bags without coordinates
        have no common places, so their attention is not compared.
        """
        reason = ""
        if self.options.batch_size == 1:
            reason = "it compares the samples of a batch, and batch_size is 1"
        elif self._compares and train.sets:
            reason = f"bags have no coordinates at {', '.join(train.sets)}"
        if self._compares and reason:
            self._compares = False
            tqdm.write(f"no consistency loss: {reason}", file=sys.stderr)
        if self._compares:
            self.resolution = None if train.uniform else COMMON_RESOLUTION

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss of the branches and inter-magnification consistency of each two."""
        own: TeacherOutput = self.model(batch.bags, batch.genes)
        output = of_all_processes(own, batch, ("logits", "subspace_logits"))
        branches = output.branches
        task = branch_loss(self.task, output, batch, self.options)
        parts, total = {"task": task}, task
        if self._compares:
            consistency = torch.stack(
                [
                    inter_magnification_consistency(
                        own.branches[a].attention,
                        own.branches[b].attention,
                        resolution=self.resolution,
                        present=batch.own_tiles(a) & batch.own_tiles(b),
                    )
                    for a, b in combinations(branches, 2)
                ]
            ).sum()
            parts["consistency"] = consistency
            total = total + self.options.consistency_weight * consistency
        confidence: dict[str, Tensor] = {}
        with torch.no_grad():
            for magnification, branch in branches.items():
                rows = batch.tiles[magnification].nonzero()[:, 0]
                if len(rows):
                    shares = {name: logits[rows] for name, logits in branch.subspace_logits.items()}
                    for name, value in self.task.confidence(shares, select_target(batch.target, rows)).items():
                        # The optimizer adds those of all processes, and each has those of the whole batch.
                        confidence[name] = confidence.get(name, 0) + value / len(batch.counts)
        return StageLoss(total, parts, confidence, gate_shares(output))

    def step(self, loss: StageLoss) -> None:
        """Coordinate the gradients and apply them; the log gets cosines and the shares of rows that were projected."""
        if self.coordinated is None:
            self.optimizer.step()
            return
        self.coordinated.step(confidence=loss.confidence)
        report = self.coordinated.report
        loss.notes["conflicts"] = torch.stack([(each < 0).float().mean() for each in report.cosine.values()]).mean()
        for (first, second), cosine in report.cosine.items():
            loss.notes[f"cosine_{first}_{second}"] = cosine.mean()
        for name, rows in report.projected.items():
            loss.notes[f"projected_{name}"] = rows / max(report.rows, 1)

    def logits(self, batch: Batch) -> Tensor:
        """Predictions of the model."""
        logits: Tensor = self.model(batch.bags, batch.genes).logits
        return logits

    @torch.no_grad()
    def outputs(self, dataset: CohortDataset) -> TeacherOutputs:
        """The outputs for every sample, in evaluation mode, on the CPU."""
        self.model.eval()

        def compute(batch: Batch) -> list[Tensor]:
            output: TeacherOutput = self.model(batch.bags, batch.genes)
            parts = [output.logits]
            for branch in output.branches.values():
                parts.append(branch.logits)
                parts += (torch.stack(list(of.values()), 1) for of in (branch.features, branch.subspace_logits))
            return parts

        device = next(self.model.parameters()).device
        logits, *parts = dataset.outputs(self.options.batch_size, device, compute)
        size = len(BranchOutputs._fields)
        return TeacherOutputs(
            logits,
            {
                name: BranchOutputs(*parts[size * number : size * (number + 1)])
                for number, name in enumerate(self.model.magnifications)
            },
        )

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
