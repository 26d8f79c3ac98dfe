"""What all stages have in common: the interface, the loss over magnifications, and the optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...models import StudentOutput, TeacherOutput
from ...tasks import Task, select_target
from ..datasets import Batch, CohortDataset
from ..options import TrainingOptions
from ..processes import join_rows

Output = TypeVar("Output", TeacherOutput, StudentOutput)


class StageLoss(NamedTuple):
    """A loss with what the stage needs for its step and the log.

    Attributes:
        total: loss.
        parts: parts of the loss.
        confidence: confidence of the subspaces where the stage coordinates gradients.
        notes: other numbers for the log; the step adds its own.
    """

    total: Tensor
    parts: dict[str, Tensor]
    confidence: dict[str, Tensor]
    notes: dict[str, Tensor]


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


def of_all_processes(output: Output, batch: Batch, fields: Sequence[str]) -> Output:
    """An output with the gate, and some fields of the branches, of the samples of all processes.

    Args:
        output: output for the samples of this process.
        batch: batch that the processes share.
        fields: fields of the branches: tensors of one row for each sample, or mappings to such tensors.

    Returns:
        The output; other fields stay those of this process.
    """
    if len(batch.counts) == 1:
        return output
    own: Any = {name: {field: getattr(branch, field) for field in fields} for name, branch in output.branches.items()}
    gated, gate, *parts = join_rows([output.gated, output.gate, *_tensors(own)], batch.counts)
    whole = _filled(own, iter(parts))
    branches: Any = {name: branch._replace(**whole[name]) for name, branch in output.branches.items()}
    return output._replace(branches=branches, gate=gate, gated=gated)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested mappings, in order."""
    if not isinstance(tree, Mapping):
        yield tree
        return
    for part in tree.values():
        yield from _tensors(part)


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested mappings with other tensors, in order."""
    if not isinstance(tree, Mapping):
        return next(tensors)
    return {name: _filled(part, tensors) for name, part in tree.items()}


def branch_loss(task: Task, output: TeacherOutput | StudentOutput, batch: Batch, options: TrainingOptions) -> Tensor:
    """The loss of every magnification's own prediction, and of the gate's where the gate has weights to learn."""
    losses = []
    for name, branch in output.branches.items():
        rows = batch.tiles[name].nonzero()[:, 0]
        if len(rows):
            losses.append(task.loss(branch.logits[rows], select_target(batch.target, rows)))
        else:  # All parameters have a gradient in every step, in one process as in several.
            losses.append(branch.logits.sum() * 0)
    if options.gate == "learned":
        losses.append(task.loss(output.gated, batch.target))
    return torch.stack(losses).sum()


def gate_shares(output: TeacherOutput | StudentOutput) -> dict[str, Tensor]:
    """The mean share of every magnification in the gated prediction, for the log."""
    return {f"gate_{name}": share for name, share in zip(output.branches, output.gate.detach().mean(0), strict=True)}


def adamw(model: nn.Module, options: TrainingOptions, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) and scalars are not decayed. What needs no gradient was fitted already."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
