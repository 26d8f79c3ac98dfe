"""The layout of a network in one row of numbers, for kernels.

Kernels read a row that holds all heads. Each program writes a row of gradients that holds one head.
"""

from math import prod

import torch
from torch import Tensor

from ..position_bias import MLPBias


class FlatNetwork:
    """The parameters of :class:`~..position_bias.MLPBias` in their order, each of them row by row.

    Inside of kernels, ``addresses_of`` in ``_triton_bias.py`` gives the same layout.

    Args:
        features: number F of units of a hidden layer.
        heads: number of heads in a row: all that share the hidden layers, or one.

    Attributes:
        size: number of parameters.
    """

    def __init__(self, features: int, heads: int) -> None:
        hidden: list[tuple[int, ...]] = [(features, 2), (features,), (features, features), (features,)]
        self._shapes = [*hidden, (heads, features), (heads,)]
        self._sizes = [prod(shape) for shape in self._shapes]
        self.size = sum(self._sizes)

    @staticmethod
    def pack(network: MLPBias) -> Tensor:
        """The parameters in a row, in float32."""
        return torch.cat([part.flatten().float() for part in network])

    def split(self, rows: Tensor) -> MLPBias:
        """The parameters [..., *shape] from rows [..., size]."""
        parts = torch.split(rows, self._sizes, dim=-1)
        return MLPBias(*(torch.unflatten(part, -1, shape) for part, shape in zip(parts, self._shapes, strict=True)))
