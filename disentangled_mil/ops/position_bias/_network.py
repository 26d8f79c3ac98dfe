"""A position bias that is a small network, evaluated for every pair of a query and a key."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from ..._torch_private import relu_backward
from .._tile_size import tile_size
from ._tiled import BiasWanted, position_gradients

# A tile holds the hidden layers of this number of pairs: with 32 features in float32, they fit into the L2 cache.
MOST_PAIRS = 11 << 10


def pairs_at_once(device: torch.device) -> int:
    """The number of pairs whose hidden layers a tile holds."""
    return tile_size(MOST_PAIRS, device)


class MLPBias(NamedTuple):
    """Bias of a displacement d as a network of its log-spaced coordinates s = sign(d) log(1 + abs(d)).

    ``bias = w3 relu(w2 relu(w1 s + b1) + b2) + b3``, one number for each of the I heads of a group.

    Shape:
        ``w1`` [F, 2], ``b1`` [F], ``w2`` [F, F], ``b2`` [F], ``w3`` [I, F], ``b3`` [I];
        displacements [..., 2] -> [..., I].

    Source:
        Swin Transformer V2 (Liu et al., arXiv 2111.09883), in the paper's deformation layer.

    Example:
        >>> import torch
        >>> from disentangled_mil import ContinuousPositionBias
        >>> bias = ContinuousPositionBias(hidden=32, outputs=1).weights()
        >>> bias(torch.zeros(5, 7, 2)).shape
        torch.Size([5, 7, 1])
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    def __call__(self, displacement: Tensor) -> Tensor:
        """Bias of each displacement [..., 2] -> [..., I]."""
        hidden = relu(linear(log_spaced(displacement).to(self.w1.dtype), self.w1, self.b1))
        bias: Tensor = linear(relu(linear(hidden, self.w2, self.b2)), self.w3, self.b3)
        return bias

    def lipschitz_constant(self) -> Tensor:
        """Largest change of each head's bias per unit of displacement [I]: the product of the layers' norms."""
        first, second = (torch.linalg.matrix_norm(w.detach().double(), ord=2) for w in (self.w1, self.w2))
        lipschitz_constant: Tensor = torch.linalg.vector_norm(self.w3.detach().double(), dim=1) * first * second
        return lipschitz_constant


class HiddenLayers:
    """The hidden layers of a network at M displacements, from which values and gradients follow.

    Args:
        network: the network.
        displacement: displacements [M, 2].
    """

    def __init__(self, network: MLPBias, displacement: Tensor) -> None:
        self.network, self.displacement = network, displacement
        # These are the values of log_spaced in fewer passes, but without a derivative at 0.
        self.spaced = displacement.abs().log1p_().copysign_(displacement)
        self.first = torch.addmm(network.b1, self.spaced, network.w1.T).relu_()
        self.second = torch.addmm(network.b2, self.first, network.w2.T).relu_()

    def values(self) -> Tensor:
        """The biases [M, I]."""
        return torch.addmm(self.network.b3, self.second, self.network.w3.T)

    def backward(self, gradient: Tensor, grad_network: MLPBias | None, *, want_displacement: bool) -> Tensor | None:
        """Pass a gradient back to the network and to the displacements.

        Args:
            gradient: gradient of the biases [M, I].
            grad_network: sums to which the gradient of the network is added; None if it is not needed.
            want_displacement: flag that asks for the gradient of the displacements.

        Returns:
            The gradient of the displacements [M, 2], or None.
        """
        network = self.network
        product = torch.mul if len(network.w3) == 1 else torch.mm  # Both are right for one head; mul is faster.
        grad_second = relu_backward(product(gradient, network.w3), self.second)
        grad_first = relu_backward(grad_second @ network.w2, self.first)
        if grad_network is not None:
            grad_network.b3.add_(gradient.sum(0))
            grad_network.w3.addmm_(gradient.T, self.second)
            grad_network.b2.add_(grad_second.sum(0))
            grad_network.w2.addmm_(grad_second.T, self.first)
            grad_network.b1.add_(grad_first.sum(0))
            grad_network.w1.add_((self.spaced.T @ grad_first).T)  # The product is faster in this order.
        if not want_displacement:
            return None
        grad_spaced = torch.mm(grad_first, network.w1.T.contiguous().T)
        return grad_spaced.div_(self.displacement.abs().add_(1))


class TiledNetwork:
    """A :class:`~._tiled.TiledBias` that evaluates a network for every pair."""

    def __init__(self, network: MLPBias) -> None:
        self.network = network
        self._gradient = MLPBias(*map(torch.zeros_like, network))

    @property
    def most_pairs(self) -> float:
        """The number of pairs above which a tile becomes slower."""
        return pairs_at_once(self.network.w1.device)

    def tile(self, queries: Tensor, keys: Tensor) -> "NetworkTile":
        """The biases between queries [t, 2] and keys [G, J, 2]."""
        return NetworkTile(self, queries[:, None] - keys[:, None])

    def add(
        self, layers: HiddenLayers, gradient: Tensor, *, want_bias: bool = True, want_displacement: bool = False
    ) -> Tensor | None:
        """Pass a gradient [M, I] back through hidden layers, and add that of the network to the sum.

        Args:
            layers: hidden layers of this network.
            gradient: gradient of their biases.
            want_bias: flag that asks for the gradient of the network.
            want_displacement: flag that asks for the gradient of the displacements.

        Returns:
            The gradient of the displacements [M, 2], or None.
        """
        return layers.backward(gradient, self._gradient if want_bias else None, want_displacement=want_displacement)

    def gradient(self) -> MLPBias:
        """The sum of the gradients that all tiles have passed back."""
        return self._gradient


class NetworkTile:
    """The biases of a network at displacements [G, t, J, 2]."""

    def __init__(self, bias: TiledNetwork, displacement: Tensor) -> None:
        self.bias, self.shape = bias, displacement.shape
        self.layers = HiddenLayers(bias.network, displacement.view(-1, 2))

    def values(self) -> Tensor:
        """The biases [G, I, t, J]."""
        return self.layers.values().view(*self.shape[:-1], -1).movedim(-1, 1).contiguous()

    def backward(self, gradient: Tensor, wanted: BiasWanted) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the positions from that of the biases [G, I, t, J]."""
        per_pair = gradient.movedim(1, -1).flatten(0, -2)
        grad_displacement = self.bias.add(
            self.layers, per_pair, want_bias=wanted.bias, want_displacement=wanted.queries or wanted.keys
        )
        if grad_displacement is None:
            return None, None
        return position_gradients(grad_displacement.view(self.shape), wanted)


def log_spaced(displacement: Tensor) -> Tensor:
    """sign(d) log(1 + abs(d)) of each coordinate; its derivative 1 / (1 + abs(d)) holds at 0 too."""
    # Slopes of clamp at its limits differ between releases of PyTorch.
    negative = displacement < 0
    of_positive = displacement.masked_fill(negative, 0).log1p()
    return torch.where(negative, -displacement.where(negative, 0).neg().log1p(), of_positive)
