"""Other targets of distillation: controls, and mixtures with the label.

Each is a function of the targets and the training samples, as ``run_split(alter_targets=...)`` takes it.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from scipy.optimize import brentq
from torch import Tensor

from disentangled_mil.losses import DistillationTargets
from disentangled_mil.train.datasets import CohortDataset

Targets: TypeAlias = dict[str, DistillationTargets]
_LARGEST_MARGIN = 60.0  # of logits; its entropy is 0 in float32


@dataclass(frozen=True)
class Permuted:
    """The targets of other patients: nothing but their distribution is left.

    Args:
        seed: seed of the permutation.
        within: whether patients take targets of their own class, so that the label stays in them.
    """

    seed: int = 0
    within: bool = False

    def __call__(self, targets: Targets, train: CohortDataset) -> Targets:
        """Permute the rows of samples that have targets; the magnifications alike."""
        generator = torch.Generator().manual_seed(self.seed)
        present = next(iter(targets.values())).present.cpu()
        groups = _classes(train) if self.within else torch.zeros(len(train), dtype=torch.long)
        order = torch.arange(len(train))
        for group in sorted(set(groups.tolist())):
            rows = torch.nonzero(present & (groups == group))[:, 0]
            order[rows] = rows[torch.randperm(len(rows), generator=generator)]
        return {name: each.select(order) for name, each in targets.items()}


@dataclass(frozen=True)
class SmoothedLabels:
    """Labels that are as uncertain as the targets: the same mean entropy, and nothing about the patient but the class.

    Args:
        temperature: temperature of the distillation, at which entropies are compared.
    """

    temperature: float = 2.0

    def __call__(self, targets: Targets, train: CohortDataset) -> Targets:
        """Replace the logits by a multiple of the label."""
        return {name: self._smoothed(each, _classes(train)) for name, each in targets.items()}

    def _smoothed(self, targets: DistillationTargets, classes: Tensor) -> DistillationTargets:
        label = torch.nn.functional.one_hot(classes, targets.logits.shape[1]).float().to(targets.logits.device)
        wanted = _entropy(targets.logits[targets.present] / self.temperature)

        def excess(margin: float) -> float:
            return _entropy(margin * label[:1] / self.temperature) - wanted

        margin = brentq(excess, 0.0, _LARGEST_MARGIN) if excess(_LARGEST_MARGIN) < 0 < excess(0.0) else _LARGEST_MARGIN
        return DistillationTargets(margin * label * targets.present[:, None], targets.present)


@dataclass(frozen=True)
class MixedWithLabels:
    """Probabilities halfway between the targets and the label, or at another share.

    Args:
        share: share of the label.
        temperature: temperature of the distillation.
    """

    share: float
    temperature: float = 2.0

    def __call__(self, targets: Targets, train: CohortDataset) -> Targets:
        """Mix the softened probabilities."""
        return {name: self._mixed(each, _classes(train)) for name, each in targets.items()}

    def _mixed(self, targets: DistillationTargets, classes: Tensor) -> DistillationTargets:
        label = torch.nn.functional.one_hot(classes, targets.logits.shape[1]).to(targets.logits)
        mixed = (1 - self.share) * (targets.logits / self.temperature).softmax(1) + self.share * label
        logits = self.temperature * mixed.clamp(min=1e-6).log()
        return DistillationTargets(logits * targets.present[:, None], targets.present)


def _classes(train: CohortDataset) -> Tensor:
    """The class of every sample; for survival, whether the event was observed."""
    if isinstance(train.target, Tensor):
        return train.target.cpu()
    return torch.tensor([int(event) for event in train.labels["event"]])


def _entropy(logits: Tensor) -> float:
    """The mean entropy of class probabilities."""
    logs = logits.double().log_softmax(1)
    return float(-(logs.exp() * logs).sum(1).mean())
