"""The operator of streamed attention as one dense formula, which exporters take."""

from typing import Any

from torch import Tensor

from ..._named_values import build
from ._carried import AttentionArguments
from ._reference import dense_weights, reference


def plain_attention(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The results of the operator without dropout, from its flat arguments; no weights are kept."""
    given = build(AttentionArguments, flat)
    scores = given.scores
    weights = dense_weights(
        query=scores.query,
        key=scores.key,
        query_position=scores.query_position,
        key_position=scores.key_position,
        bias=scores.bias.unpacked(),
        key_logit=scores.logit,
        query_mask=scores.mask,
        scale=scores.scale,
    )
    return (*reference(weights, given.value, 0.0), weights[:, :, :0])
