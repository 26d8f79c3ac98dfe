"""The arguments and results of the operators of attention."""

from typing import NamedTuple

from torch import Tensor

from ..._precision import wide_dtype
from ..position_bias import CarriedBias, TiledBias, tiled


class CarriedScores(NamedTuple):
    """The ingredients of the attention scores as operator arguments. Every field has a value.

    Attributes:
        query: queries [B, H, N, D].
        key: keys [B, H, J, D].
        query_position: positions of the queries [B, N, 2].
        key_position: positions of the keys [B, G, J, 2].
        mask: mask of the queries [B, N] (True = real token).
        logit: logits of the keys, which are added to their scores [B, G, J].
        bias: position bias.
        scale: factor of Q K^T.
    """

    query: Tensor
    key: Tensor
    query_position: Tensor
    key_position: Tensor
    mask: Tensor
    logit: Tensor
    bias: CarriedBias
    scale: float

    def tiled_bias(self) -> TiledBias | None:
        """The position bias of the whole batch, tile by tile."""
        pairs = self.query.shape[2] * self.logit.numel()
        return tiled(self.bias.unpacked(), wide_dtype(self.query), pairs)

    def with_bias(self, bias: TiledBias | None, wanted: "CarriedScores") -> "CarriedScores":
        """A gradient of scores with that of the bias, which its tiles have added up.

        Args:
            bias: position bias of the batch.
            wanted: scores with a bool in place of every tensor: True = its gradient is needed.

        Returns:
            The gradient of all scores.
        """
        if bias is None or not any(wanted.bias.tensors):
            return self
        return self._replace(bias=CarriedBias.of(bias.gradient()))


class AttentionArguments(NamedTuple):
    """The arguments of an operator of attention.

    Attributes:
        scores: ingredients of the scores.
        value: values [B, H, J, D].
        dropout: probability of dropping a weight.
        seed: seed of the dropped weights; None without dropout.
        keep: flag that asks for the weights too.
    """

    scores: CarriedScores
    value: Tensor
    dropout: float
    seed: Tensor | None
    keep: bool


class Attended(NamedTuple):
    """The results of an operator of attention.

    Attributes:
        out: attended values [B, H, N, D].
        mass: sums of the weights over the real queries [B, H, J].
        weights: weights [B, H, N, J] if they are kept, else [B, H, 0, J].
    """

    out: Tensor
    mass: Tensor
    weights: Tensor
