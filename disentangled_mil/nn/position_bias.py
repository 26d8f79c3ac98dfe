"""Continuous position bias: an attention bias that is a function of two numbers."""

from functools import partial

from torch import Tensor, nn

from .._checks import check_count, check_floating
from .._precision import wide_dtype
from ..ops import BiasTable, MLPBias
from ..ops.position_bias import network_biases


class ContinuousPositionBias(nn.Module):
    """Attention bias of a relative displacement, at any resolution: ``MLP(sign(x) log(1 + |x|))``.

    Args:
        hidden: width of the two hidden layers.
        outputs: number of biases per displacement, one for each head that shares it.

    Shape:
        [..., 2] displacements (x, y) of query minus key -> [..., outputs].

    Source:
        Swin Transformer V2 (Liu et al., arXiv 2111.09883), in the paper's deformation layer.

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
        """Compute biases.

        Args:
            displacement: query position minus key position.

        Returns:
            One bias per displacement and output.
        """
        check_floating("displacement", displacement)
        if displacement.shape[-1:] != (2,):
            raise ValueError(f"displacement must have shape [..., 2], got {list(displacement.shape)}")
        return self.weights()(displacement)

    def weights(self) -> MLPBias:
        """The weights of the network, with which attention computes the bias exactly."""
        first, _, second, _, third = self.mlp
        return MLPBias(first.weight, first.bias, second.weight, second.bias, third.weight, third.bias)  # type: ignore[arg-type]

    def table(self, resolution: int = 129) -> BiasTable:
        """Tabulate the network over displacements in [-2, 2], which all positions in [-1, 1] can have.

        The gradient of the table flows to the network. Hidden layers are not kept for it but computed again. The table
        cannot be differentiated twice, nor in forward mode (NotImplementedError); ``BiasTable.of(network)`` can.

        Args:
            resolution: nodes along each side.

        Returns:
            The table, which attention interpolates.
        """
        network = self.weights()
        return BiasTable.of(
            partial(network_biases, network),
            resolution=resolution,
            dtype=wide_dtype(network.w1),
            device=network.w1.device,
        )
