"""Models of one split, each with its loss and optimizer, ready to be trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..data.cohort import Cohort
from ..data.expression import ExpressionPipeline
from ..losses import DistillationTargets
from ..models import GeneNetwork, Student, Teacher
from ..tasks import Task
from .datasets import CohortDataset
from .linear import BOTH, SLIDES, Penalties, RowsLoss, distilled_loss, fit_linear, task_loss_of, vectors_of
from .options import TrainingOptions
from .processes import by_first
from .stages import GeneStage, StudentStage, TeacherStage

WITHOUT_GENES = ("prototype_1", "prototype_2")
"""Names of a student's subspaces where no genes define them."""

Targets = Mapping[str, DistillationTargets]


@dataclass(frozen=True)
class StageBuilder:
    """What the models of a split have in common.

    Args:
        cohort: training patients.
        task: fitted task.
        pipeline: fitted pipeline of the expression; None if no patient has any.
        options: options of the training.
        penalties: penalties of the linear models in ``"teacher"`` and ``"student"``, if they have any.
    """

    cohort: Cohort
    task: Task
    pipeline: ExpressionPipeline | None
    options: TrainingOptions
    penalties: Mapping[str, Penalties] = field(default_factory=dict)

    def genes(self) -> GeneStage:
        """The network on genes alone."""
        torch.manual_seed(self.options.seed)
        return GeneStage(self._placed(GeneNetwork(**self.arguments("genes"))), self._task, self.options)

    def teacher(self, train: CohortDataset, *, seed: int | None = None) -> TeacherStage:
        """A teacher whose patch encoders are standardized on its training samples; its seed may be its own."""
        options = self.options if seed is None else replace(self.options, seed=seed)
        torch.manual_seed(options.seed)
        model = self._placed(Teacher(**self.arguments("teacher")))
        self._fit(model, "teacher", train, task_loss_of(train, self.task))
        return TeacherStage(model, self._task, options)

    def student(self, train: CohortDataset, targets: Targets | None = None) -> StudentStage:
        """A student from scratch, or one that is distilled from targets; both start alike."""
        torch.manual_seed(self.options.seed)
        model = self._placed(Student(**self.arguments("student")))
        loss = task_loss_of(train, self.task)
        if targets is not None:
            options = self.options
            loss = distilled_loss(
                loss, mean_prediction(targets), self.task, options.prediction_weight, options.temperature
            )
        self._fit(model, "student", train, loss)
        return StudentStage(model, self._task, self.options, targets)

    def check(self, models: Collection[str]) -> None:
        """Build the networks of a split without memory, so that sizes that do not fit are refused before any training.

        Args:
            models: models to train; those that are no networks are left out.

        Raises:
            ValueError: an option does not fit.
        """
        kinds = {"genes": GeneNetwork, "teacher": Teacher, "student": Student}
        with torch.device("meta"):
            for model, kind in kinds.items():
                if model in models:
                    kind(**self.arguments(model))

    def arguments(self, model: str) -> dict[str, Any]:
        """Constructor arguments of a model, as they are saved: ``"genes"``, ``"teacher"`` or ``"student"``."""
        options = self.options
        common = {"outputs": self.task.outputs, "dim": options.dim}
        sizes = {} if self.pipeline is None else self.pipeline.sizes
        genes = {"genes": sizes, "gene_tokens": options.gene_tokens}
        if model == "genes":
            return {**genes, "dropout": options.gene_dropout, **common}
        histology = {
            "features": self.cohort.width,
            "dropout": options.dropout,
            "magnifications": list(self.cohort.magnifications),
            "link": self.task.link,
            "gate": options.gate,
            "heads": options.heads,
            "groups": options.heads,
            "dim_head": options.dim_head,
            "linear": options.linear,
        }
        if model == "teacher":
            return {**genes, "gene_dropout": options.gene_dropout, **histology, **common}
        return {"subspaces": list(sizes) or list(WITHOUT_GENES), **histology, **common}

    def _fit(self, model: Teacher | Student, name: str, train: CohortDataset, loss: RowsLoss) -> None:
        """Fit what takes no part in the training by steps; other processes get it when that begins."""
        by_first(lambda: _standardize(model, train, self.options.batch_size))
        if model.linear is not None:
            rows = torch.arange(len(train))
            vectors = vectors_of(train, BOTH if name == "teacher" else SLIDES)
            fitted = by_first(lambda: fit_linear(vectors, rows, loss, self.task.outputs, self.penalties[name]))
            model.linear.load_state_dict(fitted.state_dict())
            model.linear.requires_grad_(False)

    @property
    def _task(self) -> Task:
        return self.task.to(self.options.device)

    def _placed(self, model: Any) -> Any:
        return model.to(self.options.device)


def _standardize(model: Teacher | Student, dataset: CohortDataset, batch_size: int) -> None:
    """Fit the patch encoders' mean and standard deviation on the training patches, a batch at a time."""
    for name in model.magnifications:
        bags = (batch.bags[name] for batch in dataset.batches(batch_size))
        encoder = model.get_submodule(f"branches.{name}.patches")
        if not dataset.present(name).any():
            raise ValueError(f"a training patient must have tiles at {name}, got none among {len(dataset)} samples")
        encoder.fit(bag.patches[bag.mask] for bag in bags)  # type: ignore[operator]


def mean_prediction(targets: Targets) -> DistillationTargets:
    """The targets of the linear model, which serves all magnifications: the mean of their logits, on the CPU."""
    present = torch.stack([each.present for each in targets.values()])  # [M, B]
    logits = torch.stack([each.logits for each in targets.values()])  # [M, B, K]
    total = torch.where(present[..., None], logits, 0).sum(0)
    return DistillationTargets(total / present.sum(0).clamp(min=1)[:, None], present.any(0)).to("cpu")
