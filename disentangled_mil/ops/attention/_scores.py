"""Attention with a bias that is a function of the displacement between query and key."""

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from ..._checks import (
    check_callable,
    check_choice,
    check_flag,
    check_floating,
    check_interval,
    check_mask,
    check_shape,
    check_type,
)
from ..._collection import TensorCollection
from .._triton_runtime import available
from ..position_bias import Bias, BiasTable, CarriedBias, MLPBias, check_bias
from ._bag import ENTRIES
from ._carried import CarriedScores
from ._reference import dense_weights, reference
from ._streaming import streaming
from ._triton import MOST_FEATURES_IN_REGISTERS, MOST_WIDTH, triton_attention

BACKENDS = ("auto", "reference", "streaming", "triton")


class AttentionOutput(NamedTuple):
    """The result of :func:`biased_attention`.

    Attributes:
        out: attended values [B, H, N, D]; zeros for a query that is masked out or has no key left.
        mass: sum of the weights on each key over the real queries, before dropout [B, H, J].
        weights: weights before dropout [B, H, N, J] if they are kept, else None.
    """

    out: Tensor
    mass: Tensor
    weights: Tensor | None


@dataclass(frozen=True, eq=False)
class AttentionScores(
    TensorCollection,
    parts=("query", "key", "query_position", "key_position", "bias", "key_logit", "query_mask"),
    constants=("scale",),
):
    """The scores of :func:`biased_attention` as their ingredients: an attention map that is not computed yet.

    The attributes are the arguments of :func:`biased_attention` of the same names.
    """

    query: Tensor
    key: Tensor
    query_position: Tensor
    key_position: Tensor
    bias: Bias = None
    key_logit: Tensor | None = None
    query_mask: Tensor | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        sizes = check_shape("query", self.query, "B H N D")
        check_floating("query", self.query)
        sizes |= check_shape("key", self.key, "B H J D", sizes)
        check_shape("query_position", self.query_position, "B N 2", sizes)
        sizes |= check_shape("key_position", self.key_position, "B G J 2", sizes)
        heads, groups = sizes["H"], sizes["G"]
        if groups == 0 or heads % groups:
            raise ValueError(f"key_position must have a number of groups G that divides H = {heads}, got {groups}")
        if isinstance(self.bias, (MLPBias, BiasTable)):
            check_bias(self.bias, heads // groups)
        elif self.bias is not None:
            check_callable("bias", self.bias)
        if self.key_logit is not None:
            check_shape("key_logit", self.key_logit, "B G J", sizes)
        if self.query_mask is not None:
            check_mask("query_mask", self.query_mask, "B N", sizes)
        if self.scale is not None:
            check_type("scale", self.scale, Real, "a number or None")

    def weights(self) -> Tensor:
        """Compute the dense weights.

        Returns:
            Weights [B, H, N, J] in float32 or wider. Every row sums to one, or is zero where the query is masked out
            or has no key left.
        """
        chosen, unused = choose_backend("auto", self), self.key.detach()
        if chosen == "reference":
            return self._dense()
        # Kernels take values of the width of keys.
        attention, value = (triton_attention, unused) if chosen == "triton" else (streaming, unused[..., :1])
        return attention(self.carried(), value, 0.0, keep=True).weights

    def _dense(self) -> Tensor:
        """The dense weights by the reference."""
        return dense_weights(
            query=self.query,
            key=self.key,
            query_position=self.query_position,
            key_position=self.key_position,
            bias=self.bias,
            key_logit=self.key_logit,
            query_mask=self.query_mask,
            scale=self.factor,
        )

    def attend(
        self, value: Tensor, *, dropout: float = 0.0, keep_weights: bool = False, backend: str = "auto"
    ) -> AttentionOutput:
        """:func:`biased_attention` of values [B, H, J, D]."""
        check_shape("value", value, "B H J D", dict(zip("BHJD", self.key.shape, strict=True)))
        check_interval("dropout", dropout, 0, 1)
        check_flag("keep_weights", keep_weights)
        chosen = choose_backend(backend, self)
        if chosen == "reference":
            weights = self._dense()
            return AttentionOutput(*reference(weights, value, dropout), weights if keep_weights else None)
        attention = streaming if chosen == "streaming" else triton_attention
        attended = attention(self.carried(), value, dropout, keep=keep_weights)
        return AttentionOutput(attended.out, attended.mass, attended.weights if keep_weights else None)

    @property
    def factor(self) -> float:
        """The scale of Q K^T."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def carried(self) -> CarriedScores:
        """The scores as operators take them, with defaults for what is None."""
        mask, logit, bias = self.query_mask, self.key_logit, self.bias
        if mask is None:
            mask = torch.ones(self.query_position.shape[:2], dtype=torch.bool, device=self.query.device)
        if logit is None:
            logit = self.key_position.new_zeros(self.key_position.shape[:3])
        assert bias is None or isinstance(bias, (MLPBias, BiasTable))  # other functions go to the reference
        return CarriedScores(
            query=self.query,
            key=self.key,
            query_position=self.query_position,
            key_position=self.key_position,
            mask=mask,
            logit=logit,
            bias=CarriedBias.of(bias),
            scale=self.factor,
        )


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_position: Tensor,
    key_position: Tensor,
    *,
    bias: Bias = None,
    key_logit: Tensor | None = None,
    query_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    keep_weights: bool = False,
    backend: str = "auto",
) -> AttentionOutput:
    """Attend with a position bias: softmax(Q K^T scale + bias(q_pos - k_pos) + key_logit) V.

    Keys lie in groups of heads: head h belongs to group h // (H / G). Softmax and sums are in float32, or in
    float64 for float64.

    Args:
        query: queries.
        key: keys.
        value: values.
        query_position: normalized coordinates (x, y) of every query.
        key_position: normalized coordinates (x, y) of every key, per group.
        bias: network (:class:`MLPBias`, exact), table (:class:`BiasTable`, interpolated), or None. Only the reference
            accepts any other function of displacements [..., 2] -> [..., H / G]; ``BiasTable.of`` tabulates it.
        key_logit: term added to every score of a key; -inf takes the key out.
        query_mask: mask of the queries (True = real token). Padding may hold anything, also NaN, and costs nothing.
        scale: factor of Q K^T; D ** -0.5 by default.
        dropout: probability of dropping an attention weight. The streamed implementation rounds it to a multiple of
            2^-16.
        keep_weights: flag that asks for the weights too. They take 4 B H N J bytes, and losses on the weights need not
            compute them again.
        backend: ``"reference"`` holds all N x J matrices. ``"streaming"`` holds one tile of them at a time.
            ``"triton"`` holds none outside of a kernel; it needs CUDA tensors of at most float32, D up to 256, and
            networks of up to 128 features. ``"auto"`` chooses kernels where they can run, for networks of up to 64
            features. Elsewhere it takes the reference for small bags without a bias, and streams all others. An
            explicit choice is never replaced.

    Shape:
        ``query`` [B, H, N, D], ``key`` and ``value`` [B, H, J, D], ``query_position`` [B, N, 2],
        ``key_position`` [B, G, J, 2], ``key_logit`` [B, G, J], ``query_mask`` [B, N].

    Returns:
        The attended values, the mass of every key, and the weights if they are kept. All of them have gradients.

    Raises:
        TypeError: ``query`` is not floating-point, ``query_mask`` is not bool, or the backend does not support the
            bias or a type.
        ValueError: shapes disagree, H is not a multiple of G, an option is unknown, or ``"triton"`` is given tensors
            that are not on a CUDA device or too large.
        RuntimeError: ``"triton"`` is chosen and Triton is not installed.
        NotImplementedError: in forward mode, or in the backward pass for a gradient of a gradient. Only the reference
            has both.

    Source:
        Eqs 1-3 of the paper; deformable attention of DAT (Xia et al., CVPR 2022).

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import biased_attention
        >>> q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 3, 8), torch.randn(2, 4, 3, 8)
        >>> attended = biased_attention(q, k, v, torch.rand(2, 9, 2), torch.rand(2, 4, 3, 2))
        >>> attended.out.shape, attended.mass.shape
        (torch.Size([2, 4, 9, 8]), torch.Size([2, 4, 3]))
    """
    scores = AttentionScores(
        query, key, query_position, key_position, bias=bias, key_logit=key_logit, query_mask=query_mask, scale=scale
    )
    return scores.attend(value, dropout=dropout, keep_weights=keep_weights, backend=backend)


def choose_backend(backend: str, scores: AttentionScores) -> str:
    """The implementation that runs: an explicit choice, or the fastest possible one for ``"auto"``."""
    check_choice("backend", backend, BACKENDS)
    bias, query = scores.bias, scores.query
    formula = bias is None or isinstance(bias, (MLPBias, BiasTable))
    if backend == "auto":
        if not formula:
            return "reference"
        small = query.shape[-1] <= MOST_WIDTH
        if isinstance(bias, MLPBias):
            small = small and len(bias.w1) <= MOST_FEATURES_IN_REGISTERS
        if query.is_cuda and query.dtype != torch.float64 and small and available():
            return "triton"
        return "reference" if _one_tile(scores) else "streaming"
    if backend != "reference" and not formula:
        raise TypeError(
            f"bias must be an MLPBias, a BiasTable or None for backend={backend!r}, got {type(bias).__name__}; "
            'BiasTable.of makes a table of any function, and backend="reference" takes it as it is'
        )
    return backend


def _one_tile(scores: AttentionScores) -> bool:
    """Whether small sets fit into one tile together, so that one product serves all bags without a loop."""
    # A compiled graph serves every size and therefore must not ask.
    if scores.bias is not None or torch.compiler.is_compiling():
        return False
    batch, heads, queries, _ = scores.query.shape
    return batch * heads * queries * scores.key.shape[2] <= ENTRIES
