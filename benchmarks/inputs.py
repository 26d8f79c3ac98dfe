"""Inputs of the cases; a seed gives every candidate the same numbers."""

from collections.abc import Iterable
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from disentangled_mil import ContinuousPositionBias, Grid
from disentangled_mil.ops import AttentionScores, BiasTable, MLPBias

from .case import Outputs

DIM, HEADS, WIDTH = 128, 8, 64  # C, H, D
CLUSTERS, NEIGHBORS = 8, 5


class AttentionInputs(NamedTuple):
    """Inputs of biased attention in the sizes of a deformable layer, with one group for each head."""

    query: Tensor  # [B, H, N, D]
    key: Tensor  # [B, H, J, D]
    value: Tensor  # [B, H, J, D]
    query_position: Tensor  # [B, N, 2]
    key_position: Tensor  # [B, H, J, 2]
    network: ContinuousPositionBias
    arriving: Tensor  # [B, H, N, D], gradient of the output

    @classmethod
    def of(cls, size: int, device: torch.device) -> "AttentionInputs":
        """Draw ``size`` queries on a square, and the keys that a layer samples there."""
        torch.manual_seed(0)
        keys = sampled_keys(size)
        network = ContinuousPositionBias(DIM // 4, 1).to(device)
        query, arriving = (torch.randn(1, HEADS, size, WIDTH, device=device) for _ in range(2))
        key, value = (torch.randn(1, HEADS, keys, WIDTH, device=device) for _ in range(2))
        cells = Grid.square(size, device=device).cells
        query_position = (2 * cells + 1) / (cells.amax() + 1) - 1
        key_position = 2 * torch.rand(1, HEADS, keys, 2, device=device) - 1
        for tensor in (query, key, value, key_position):
            tensor.requires_grad_()
        return cls(query, key, value, query_position, key_position, network, arriving)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Tensors that need a gradient in a layer."""
        tensors = {name: getattr(self, name) for name in ("query", "key", "value", "key_position")}
        return tensors | dict(self.network.named_parameters())

    def bias(self, kind: str) -> MLPBias | BiasTable:
        """Make the position bias, ``"exact"`` or as a ``"table"``."""
        return self.network.table() if kind == "table" else self.network.weights()

    def scores(self, kind: str) -> AttentionScores:
        """Make the scores of the attention map, which are not computed yet."""
        return AttentionScores(self.query, self.key, self.query_position, self.key_position, self.bias(kind))

    def displacement(self) -> Tensor:
        """Compute the displacement of every query from every key [B, H, N, J, 2]."""
        return self.query_position[:, None, :, None] - self.key_position[:, :, None]


def sampled_keys(size: int) -> int:
    """Count the keys J of a layer that samples one in 4 x 4 tokens."""
    return (isqrt(size) // 4) ** 2


def blobs(size: int, device: torch.device) -> Tensor:
    """Draw tokens [1, N, C] around well separated centers."""
    torch.manual_seed(0)
    centers = 3 * torch.randn(CLUSTERS, DIM)
    return (centers[torch.arange(size) % CLUSTERS] + torch.randn(size, DIM))[None].to(device)


def with_gradients(result: Tensor, leaves: dict[str, Tensor], arriving: Tensor) -> Outputs:
    """Give a result and its gradients."""
    gradients = torch.autograd.grad(result, list(leaves.values()), arriving)
    return {"result": result.detach()} | named_gradients(zip(leaves, gradients, strict=True))


def named_gradients(gradients: Iterable[tuple[str, Tensor | None]]) -> Outputs:
    """Name the gradients that can be compared.

    The last bias of a position-bias network moves all logits of a row alike. The softmax ignores it, so its gradient is
    rounding error and is left out.
    """
    return {f"gradient of {n}": g for n, g in gradients if g is not None and not n.endswith("mlp.4.bias")}
