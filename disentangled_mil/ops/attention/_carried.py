"""The arguments and results of the operators of attention."""

from typing import NamedTuple

from torch import Tensor

from ..._precision import wide_dtype
from ..position_bias import CarriedBias, TiledBias, tiled


class CarriedScores(NamedTuple):
    """What the softmax of attention is taken of, as operators take it: nothing is optional.

    Attributes:
        query: queries [B, H, N, D].
        key: keys [B, H, J, D].
        query_position: places of the queries [B, N, 2].
        key_position: places of the keys [B, G, J, 2].
        mask: whether a query is real [B, N].
        logit: terms of the keys [B, G, J].
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
            wanted: scores with a bool in place of every tensor, which says whether its gradient is needed.

        Returns:
            The gradient of all scores.
        """
        if bias is None or not any(wanted.bias.tensors):
            return self
        return self._replace(bias=CarriedBias.of(bias.gradient()))


class AttentionArguments(NamedTuple):
    """What an operator of attention takes.

    Attributes:
        scores: scores of the weights.
        value: values [B, H, J, D].
        dropout: probability of dropping a weight.
        seed: seed of the dropped weights; None without dropout.
        keep: whether the weights are returned.
    """

    scores: CarriedScores
    value: Tensor
    dropout: float
    seed: Tensor | None
    keep: bool


class Attended(NamedTuple):
    """What an operator of attention returns.

    Attributes:
        out: attended values [B, H, N, D].
        mass: sums of the weights over the real queries [B, H, J].
        weights: weights [B, H, N, J] if they are kept, else [B, H, 0, J].
    """

    out: Tensor
    mass: Tensor
    weights: Tensor
