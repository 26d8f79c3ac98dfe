"""Continuous position bias: an attention bias that is a function of two numbers."""

import torch
from torch import Tensor, nn

from .._checks import check_count


class ContinuousPositionBias(nn.Module):
    """Attention bias of a relative displacement, for any resolution: ``MLP(sign(x) log(1 + |x|))``.

    Args:
        hidden: width of the two hidden layers.
        outputs: biases per displacement (heads that share one displacement).

    Shape:
        [..., 2] displacements (x, y) of query minus key -> [..., outputs].

    Source: Swin Transformer V2 (Liu et al., arXiv 2111.09883), in the paper's deformation layer.

    Example:
        >>> import torch
        >>> from disentangled_mil import ContinuousPositionBias
        >>> bias = ContinuousPositionBias(hidden=32, outputs=1)
        >>> bias(torch.zeros(5, 7, 2)).shape
        torch.Size([5, 7, 1])
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        check_count("hidden", hidden)
        check_count("outputs", outputs)
        self.mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, displacement: Tensor) -> Tensor:
        """Bias of each displacement."""
        spaced = displacement.sign() * torch.log1p(displacement.abs())
        bias: Tensor = self.mlp(spaced.to(next(self.mlp.parameters()).dtype))
        return bias
