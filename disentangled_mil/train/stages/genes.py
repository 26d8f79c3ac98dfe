"""The stage of the network on genes alone."""

from torch import Tensor

from ...models import GeneNetwork
from ...tasks import Task
from ..datasets import Batch
from ..options import TrainingOptions
from ..processes import join_rows
from .stage import Stage, StageLoss, adamw


class GeneStage(Stage):
    """The baseline on genes alone."""

    model: GeneNetwork

    def __init__(self, model: GeneNetwork, task: Task, options: TrainingOptions) -> None:
        self.model, self.task = model, task
        self.optimizer = adamw(model, options, options.weight_decay)

    def loss(self, batch: Batch, epoch: int) -> StageLoss:
        """Task loss."""
        (logits,) = join_rows([self.logits(batch)], batch.counts)
        loss = self.task.loss(logits, batch.target)
        return StageLoss(loss, {"task": loss}, {}, {})

    def logits(self, batch: Batch) -> Tensor:
        """Predictions."""
        logits: Tensor = self.model(batch.genes).logits
        return logits
