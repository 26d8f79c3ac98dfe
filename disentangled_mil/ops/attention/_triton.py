"""Biased attention on CUDA by Triton kernels, which are imported and compiled at the first call.

The forward pass runs one kernel over tiles of queries (output and log-sum-exp) and one over tiles of keys (their mass
and the weights that are kept). The backward pass does the same for the gradients. All sums have a fixed order, or are
sums of whole numbers, so that results repeat bit by bit.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._operators import with_gradient, zeros_like
from .._triton_runtime import interpreted
from ..position_bias import BiasTable, CarriedBias, MLPBias
from ._carried import Attended, AttentionArguments, CarriedScores
from ._flat_network import FlatNetwork
from ._streaming import NO_SECOND_GRADIENT
from ._triton_launch import Launch

# The widest heads D and the most features F of a network that fit into 99 KB of shared memory, which every GPU has from
# compute capability 8.0 on. Both at once take 112 KB in float32.
MOST_WIDTH, MOST_FEATURES = 256, 128
# Some GPUs have too few registers for more features; "auto" then streams.
MOST_FEATURES_IN_REGISTERS = 64
# Bound of the sum of all changes of a table in whole numbers: half of what int64 holds.
_LARGEST_SUM = 2.0**62


def triton_attention(scores: CarriedScores, value: Tensor, dropout: float, keep: bool) -> Attended:
    """Attend by kernels. The same input gives the same output and gradients, that of a table included.

    Args:
        scores: scores of the weights.
        value: values [B, H, J, D].
        dropout: probability of dropping a weight.
        keep: whether to return the weights; otherwise the backward pass computes them again.

    Returns:
        The attended values, the mass of the keys, and the weights.

    Raises:
        TypeError: query, key or value is of another type than float16, bfloat16 and float32.
        ValueError: they are not on a CUDA device, or heads or a network are larger than kernels take.
    """
    for name, tensor in {"query": scores.query, "key": scores.key, "value": value}.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise TypeError(
                f'{name} must be float16, bfloat16 or float32 for backend="triton", got {tensor.dtype}; '
                'backend="reference" and backend="streaming" take float64'
            )
        if not (tensor.is_cuda or interpreted()):
            raise ValueError(
                f'{name} must be on a CUDA device for backend="triton", got {tensor.device}; '
                'backend="reference" and backend="streaming" take any device'
            )
    width, network = scores.query.shape[-1], scores.bias.network
    features = len(network.b1) if network else 0
    for name, size, found, most in (("query", "D", width, MOST_WIDTH), ("bias", "F", features, MOST_FEATURES)):
        if found > most:
            raise ValueError(
                f'{name} must have {size} <= {most} for backend="triton", got {found}; '
                'backend="reference" and backend="streaming" take any size'
            )
    common = torch.promote_types(torch.promote_types(scores.query.dtype, scores.key.dtype), value.dtype)
    if common == torch.bfloat16 and interpreted():
        common = torch.float32  # the interpreter would multiply the bit patterns
    converted = scores._replace(
        query=scores.query.to(common),
        key=scores.key.to(common),
        query_position=torch.where(scores.mask[..., None], scores.query_position, 0).float(),
        key_position=scores.key_position.float(),
        logit=scores.logit.float(),
    )
    # The seed stays on the device. Nothing waits for it, and a CUDA graph draws a new one at every replay.
    seed = torch.randint(1 << 62, (), device=value.device) if dropout else None
    attended = _attend(AttentionArguments(converted, value.to(common), dropout, seed, keep))
    return Attended(attended.out.to(value.dtype), attended.mass, attended.weights)


class _Attended(NamedTuple):
    """:class:`~._carried.Attended`, and the log-sum-exp of the scores of every query [B, H, N]."""

    out: Tensor
    mass: Tensor
    weights: Tensor
    lse: Tensor


class _Arriving(NamedTuple):
    """Gradients of the output, the mass and the kept weights; the latter are None where none arrives."""

    into_out: Tensor
    into_mass: Tensor | None
    into_kept: Tensor | None


def _empty(given: AttentionArguments) -> _Attended:
    batch, heads, tokens, width = given.scores.query.shape
    keys = given.value.shape[2]

    def room(*shape: int) -> Tensor:
        return given.value.new_empty(batch, heads, *shape, dtype=torch.float32)

    out = given.value.new_empty(batch, heads, tokens, width)
    return _Attended(out, room(keys), room(tokens if given.keep else 0, keys), room(tokens))


def _forward(given: AttentionArguments) -> _Attended:
    results = _empty(given)
    launch = Launch(given)
    launch.over_queries("attend", out=results.out, lse=results.lse)
    mass = results.mass.new_empty(launch.chunks, *results.mass.shape)
    # Zeros, because nothing is stored for keys that are taken out.
    kept = results.weights.zero_() if given.keep else None
    launch.over_keys("weigh_keys", lse=results.lse, mass=mass, kept=kept)
    return results._replace(mass=mass.sum(0))


def _backward(given: AttentionArguments, results: _Attended, arriving: _Attended, wanted: Any) -> AttentionArguments:
    scores, bias = given.scores, given.scores.bias
    # Kernels skip what does not arrive.
    into_out = torch.zeros_like(results.out) if arriving.out is None else arriving.out.contiguous()
    into_mass = None if arriving.mass is None else arriving.mass.contiguous()
    into_kept = arriving.weights.contiguous() if given.keep and arriving.weights is not None else None
    arriving_parts = _Arriving(into_out, into_mass, into_kept)
    kept = results.weights if given.keep else None
    launch = Launch(given, kept=kept, lse=results.lse, **arriving_parts._asdict())
    if not launch.key_programs:
        return zeros_like(given)

    def room(*shape: int) -> Tensor:
        return scores.query.new_empty(shape, dtype=torch.float32)

    def per_group(parts: Tensor) -> Tensor:
        summed = parts.sum(0)
        groups = scores.logit.shape[1]
        return summed.view(len(summed), groups, summed.shape[1] // groups, *summed.shape[2:]).sum(2)

    has_bias, want_bias = bias.kind != "none", any(wanted.scores.bias.tensors)
    into_query, delta = torch.empty_like(scores.query, memory_format=torch.contiguous_format), room(*results.lse.shape)
    moved_queries = room(*results.lse.shape, 2) if has_bias and wanted.scores.query_position else None
    launch.over_queries(
        "into_queries", out=results.out, delta=delta, into_query=into_query, into_position=moved_queries
    )

    parts = (launch.chunks, *scores.key.shape)
    into_key, into_value, into_logit = room(*parts), room(*parts), room(*parts[:-1])
    moved_keys = room(*parts[:-1], 2) if has_bias and wanted.scores.key_position else None
    flat = FlatNetwork(len(bias.network.b1), heads=1) if bias.network else None  # A program serves one head.
    sums, fineness = None, None
    if want_bias and bias.table:
        sums = torch.zeros(bias.table.values.shape, dtype=torch.int64, device=scores.query.device)
        # Whole numbers have no NaN. One among the scores makes their unit NaN, and with it the gradient.
        bound = _sum_of_changes(arriving_parts, given, launch.keep_scale)
        fineness = _LARGEST_SUM / torch.where(results.lse.isnan().any(), torch.nan, bound)
    elif want_bias and flat:
        sums = room(launch.key_programs, flat.size)
    launch.over_keys(
        "into_keys",
        delta=delta,
        fineness=fineness,
        into_key=into_key,
        into_value=into_value,
        into_logit=into_logit,
        into_position=moved_keys,
        into_bias=sums,
        BIAS_SIZE=flat.size if flat else 0,
    )
    zeros = zeros_like(scores)
    into_scores = zeros._replace(
        query=into_query,
        key=into_key.sum(0),
        query_position=zeros.query_position if moved_queries is None else moved_queries.sum(1),
        key_position=zeros.key_position if moved_keys is None else per_group(moved_keys),
        logit=per_group(into_logit),
    )
    if sums is not None and fineness is not None:
        into_scores = into_scores._replace(bias=CarriedBias.of(BiasTable(sums / fineness.double(), bias.reach)))
    elif sums is not None and flat:
        into_network = _network_gradient(flat, sums.view(*launch.key_programs_per_head, -1))
        into_scores = into_scores._replace(bias=CarriedBias.of(into_network))
    return given._replace(scores=into_scores, value=into_value.sum(0))


_attend = with_gradient(
    "biased_attention_triton",
    AttentionArguments,
    _Attended,
    empty=_empty,
    forward=_forward,
    backward=_backward,
    saved=["out", "weights", "lse"],
    caller="biased_attention",
    no_second=NO_SECOND_GRADIENT,
)


def _network_gradient(flat: FlatNetwork, shares: Tensor) -> MLPBias:
    """The gradient of a network from the shares of programs [B G, I, programs, size], each for a single head."""
    *hidden, w3, b3 = flat.split(shares.sum((0, 2)))  # each [I, *shape]
    # Views would share memory with each other.
    parts = [*(part.sum(0) for part in hidden), w3[:, 0].clone(), b3[:, 0].clone()]
    return MLPBias(*parts)


def _sum_of_changes(arriving: _Arriving, given: AttentionArguments, keep_scale: float) -> Tensor:
    """A bound of the sum of the absolute gradients of all scores, which are the changes of a table.

    Those of one query sum to at most twice its largest gradient of a weight. Such a gradient is the product of a
    gradient of the output and a value, plus the gradient of a mass, plus that of a kept weight.

    Args:
        arriving: gradients of the outputs.
        given: arguments of the operator.
        keep_scale: factor of the weights that dropout keeps.

    Returns:
        The bound, a scalar that is positive.
    """
    norm, real = torch.linalg.vector_norm, given.scores.mask[:, None]
    steps = torch.where(real, norm(arriving.into_out, dim=-1, dtype=torch.float32), 0).sum(-1)  # [B, H]
    largest = steps * norm(given.value, dim=-1, dtype=torch.float32).amax(-1) * keep_scale
    if arriving.into_mass is not None:
        largest = largest + arriving.into_mass.abs().amax(-1) * real.sum(-1)
    if arriving.into_kept is not None:
        largest = largest + torch.where(real, norm(arriving.into_kept, math.inf, dim=-1), 0).sum(-1)
    total: Tensor = largest.sum()
    return 2 * total.clamp(min=torch.finfo(torch.float32).eps ** 2)
