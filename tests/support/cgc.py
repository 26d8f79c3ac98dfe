"""What the tests of CGC share: parameters whose gradients conflict, and a small model."""

import torch
from torch import Tensor, nn

from disentangled_mil.optim import CGCOptimizer

CONFIDENT_TUMOR = {"tumor": 0.9, "tme": 0.6}


def parameter(*values: object) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def two_rows() -> tuple[nn.Parameter, nn.Parameter]:
    """Blocks [2, 2] whose gradients conflict in the second row only."""
    tumor, tme = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    tumor.grad = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    tme.grad = torch.tensor([[1.0, 1.0], [-2.0, 1.0]])
    return tumor, tme


def conflict(lr: float = 1.0) -> tuple[CGCOptimizer, nn.Parameter, nn.Parameter]:
    tumor, tme = two_rows()
    sgd = torch.optim.SGD([tumor, tme], lr=lr)
    return CGCOptimizer(sgd, {"tumor": [tumor], "tme": [tme]}), tumor, tme


class Head(nn.Module):
    """Two subspace blocks and a shared bias."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("tumor", "tme")}
        )
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return sum(features[name] @ block.T for name, block in self.blocks.items()) + self.bias

    def subspace_parameters(self) -> dict[str, list[Tensor]]:
        return {name: [block] for name, block in self.blocks.items()}


def batch(seed: int, sign: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """Features whose gradients agree in every row (sign 1) or conflict in every row (sign -1)."""
    generator = torch.Generator().manual_seed(seed)
    tumor = torch.rand(1, 4, generator=generator)
    return {"tumor": tumor, "tme": sign * tumor}, torch.randint(0, 3, (1,), generator=generator)


def backward(head: Head, seed: int, sign: float = 1.0) -> Tensor:
    features, label = batch(seed, sign)
    loss = nn.functional.cross_entropy(head(features), label)
    loss.backward()
    return loss
