"""Biased attention on CUDA by Triton kernels, which are imported and compiled at the first call.

The forward pass runs one kernel over tiles of queries (output and log-sum-exp) and one over tiles of keys (their mass
and the weights that are kept). The backward pass does the same for the gradients. All sums have a fixed order, or are
sums of integers, so that results repeat bit by bit.
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
# Bound of the sum of a table's gradients as integers: half of the range of int64.
_LARGEST_SUM = 2.0**62


def triton_attention(scores: CarriedScores, value: Tensor, dropout: float, keep: bool) -> Attended:
    """Attend by kernels. The same input gives the same output and gradients, that of a table included.

    Args:
        scores: scores of the weights.
        value: values [B, H, J, D].
        dropout: probability of dropping a weight.
        keep: flag that asks for the weights; without them, the backward pass computes them again.

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
    """Gradients of the output, the mass and the kept weights; the last two may be None."""

    grad_out: Tensor
    grad_mass: Tensor | None
    grad_kept: Tensor | None


def _empty(given: AttentionArguments) -> _Attended:
    batch, heads, tokens, width = given.scores.query.shape
    keys = given.value.shape[2]

    def empty(*shape: int) -> Tensor:
        return given.value.new_empty(batch, heads, *shape, dtype=torch.float32)

    out = given.value.new_empty(batch, heads, tokens, width)
    return _Attended(out, empty(keys), empty(tokens if given.keep else 0, keys), empty(tokens))


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
    grad_out = torch.zeros_like(results.out) if arriving.out is None else arriving.out.contiguous()
    grad_mass = None if arriving.mass is None else arriving.mass.contiguous()
    grad_kept = arriving.weights.contiguous() if given.keep and arriving.weights is not None else None
    arriving_parts = _Arriving(grad_out, grad_mass, grad_kept)
    kept = results.weights if given.keep else None
    launch = Launch(given, kept=kept, lse=results.lse, **arriving_parts._asdict())
    if not launch.key_programs:
        return zeros_like(given)

    def empty(*shape: int) -> Tensor:
        return scores.query.new_empty(shape, dtype=torch.float32)

    def per_group(parts: Tensor) -> Tensor:
        summed = parts.sum(0)
        groups = scores.logit.shape[1]
        return summed.view(len(summed), groups, summed.shape[1] // groups, *summed.shape[2:]).sum(2)

    has_bias, want_bias = bias.kind != "none", any(wanted.scores.bias.tensors)
    grad_query, delta = torch.empty_like(scores.query, memory_format=torch.contiguous_format), empty(*results.lse.shape)
    grad_query_position = empty(*results.lse.shape, 2) if has_bias and wanted.scores.query_position else None
    launch.over_queries(
        "grad_queries", out=results.out, delta=delta, grad_query=grad_query, grad_position=grad_query_position
    )

    parts = (launch.chunks, *scores.key.shape)
    grad_key, grad_value, grad_logit = empty(*parts), empty(*parts), empty(*parts[:-1])
    grad_key_position = empty(*parts[:-1], 2) if has_bias and wanted.scores.key_position else None
    flat = FlatNetwork(len(bias.network.b1), heads=1) if bias.network else None  # A program serves one head.
    sums, fixed_point_scale = None, None
    if want_bias and bias.table:
        sums = torch.zeros(bias.table.values.shape, dtype=torch.int64, device=scores.query.device)
        # Integers have no NaN. A NaN among the scores makes their scale NaN, and with it the gradient.
        bound = _bound_of_score_gradients(arriving_parts, given, launch.keep_scale)
        fixed_point_scale = _LARGEST_SUM / torch.where(results.lse.isnan().any(), torch.nan, bound)
    elif want_bias and flat:
        sums = empty(launch.key_programs, flat.size)
    launch.over_keys(
        "grad_keys",
        delta=delta,
        fixed_point_scale=fixed_point_scale,
        grad_key=grad_key,
        grad_value=grad_value,
        grad_logit=grad_logit,
        grad_position=grad_key_position,
        grad_bias=sums,
        BIAS_SIZE=flat.size if flat else 0,
    )
    zeros = zeros_like(scores)
    grad_scores = zeros._replace(
        query=grad_query,
        key=grad_key.sum(0),
        query_position=zeros.query_position if grad_query_position is None else grad_query_position.sum(1),
        key_position=zeros.key_position if grad_key_position is None else per_group(grad_key_position),
        logit=per_group(grad_logit),
    )
    if sums is not None and fixed_point_scale is not None:
        grad_scores = grad_scores._replace(
            bias=CarriedBias.of(BiasTable(sums / fixed_point_scale.double(), bias.reach))
        )
    elif sums is not None and flat:
        grad_network = _network_gradient(flat, sums.view(*launch.key_programs_per_head, -1))
        grad_scores = grad_scores._replace(bias=CarriedBias.of(grad_network))
    return given._replace(scores=grad_scores, value=grad_value.sum(0))


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


def _bound_of_score_gradients(arriving: _Arriving, given: AttentionArguments, keep_scale: float) -> Tensor:
    """A bound of the sum of the absolute gradients of all scores, which are added to the gradient of a table.

    For one query, this sum is at most twice the largest gradient of a weight. The gradient of a weight is the product
    of a gradient of the output and a value, plus the gradient of a mass, plus that of a kept weight.

    Args:
        arriving: gradients of the outputs.
        given: arguments of the operator.
        keep_scale: factor of the weights that dropout keeps.

    Returns:
        The bound, a scalar that is positive.
    """
    norm, real = torch.linalg.vector_norm, given.scores.mask[:, None]
    steps = torch.where(real, norm(arriving.grad_out, dim=-1, dtype=torch.float32), 0).sum(-1)  # [B, H]
    largest = steps * norm(given.value, dim=-1, dtype=torch.float32).amax(-1) * keep_scale
    if arriving.grad_mass is not None:
        largest = largest + arriving.grad_mass.abs().amax(-1) * real.sum(-1)
    if arriving.grad_kept is not None:
        largest = largest + torch.where(real, norm(arriving.grad_kept, math.inf, dim=-1), 0).sum(-1)
    total: Tensor = largest.sum()
    return 2 * total.clamp(min=torch.finfo(torch.float32).eps ** 2)
