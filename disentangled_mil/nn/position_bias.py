"""Continuous position bias: an attention bias that is a function of two numbers."""

from functools import partial

from torch import Tensor, nn

from .._checks import check_count
from .._precision import wide_dtype
from ..ops import BiasTable, MLPBias
from ..ops._network_biases import network_biases


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
        return self.weights()(displacement)

    def weights(self) -> MLPBias:
        """The network's weights, for :func:`~disentangled_mil.ops.biased_attention` to compute it exactly."""
        first, _, second, _, third = self.mlp
        return MLPBias(first.weight, first.bias, second.weight, second.bias, third.weight, third.bias)  # type: ignore[arg-type]

    def table(self, resolution: int = 129) -> BiasTable:
        """The network's values on ``resolution`` x ``resolution`` displacements in [-2, 2], to be interpolated.

        The gradient of the table flows to the network, whose hidden layers are computed again for it. It cannot be
        differentiated twice, nor in forward mode (NotImplementedError); ``BiasTable.of(network)`` can.
        """
        network = self.weights()
        return BiasTable.of(
            partial(network_biases, network),
            resolution=resolution,
            dtype=wide_dtype(network.w1),
            device=network.w1.device,
        )
