"""What the tests of distillation share: random tensors, and the targets of a teacher."""

import torch

from disentangled_mil.losses import DistillationTargets

LINKS = ["softmax", "hazards"]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def teacher(generator: torch.Generator, batch: int = 3, present: torch.Tensor | None = None) -> DistillationTargets:
    features = {name: normal(generator, batch, 5) for name in ("tumor", "tme")}
    return DistillationTargets.from_teacher(normal(generator, batch, 4), features, present=present)
