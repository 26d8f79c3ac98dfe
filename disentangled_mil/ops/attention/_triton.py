"""Biased attention on CUDA: Triton kernels, which are imported and compiled at the first call."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..._operators import operator, refuse_forward_mode, refuse_gradient
from .._triton_runtime import interpreted, load
from ._streaming import FIRST_ONLY

# The widest heads D and the most features F of a network that there is room for in 99 KB of shared memory, which GPUs
# have from compute capability 8.0 on. Both at once take 112 KB in float32.
MOST_WIDTH, MOST_FEATURES = 256, 128
# Beyond so many features some GPUs have no registers for them, and streaming is chosen.
MOST_FEATURES_IN_REGISTERS = 64
# Programs per multiprocessor: where there are fewer tiles of keys than that, several programs share the queries.
_PROGRAMS = 4
# The sum of all changes of a table, of either sign, in whole numbers; half of what int64 holds.
_LARGEST_SUM = 2.0**62


def triton_attention(
    scores: Sequence[Tensor], value: Tensor, reach: float, scale: float, dropout: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, mass of the keys, and the weights if they are to be kept; else the backward pass computes them again.

    The same input gives the same output and the same gradients, that of a table included.

    Raises:
        TypeError: query, key or value is of another type than float16, bfloat16 and float32.
        ValueError: they are not on a CUDA device, or heads or a network are larger than kernels take.
    """
    query, key, query_position, key_position, mask, logit, *bias = scores
    for name, tensor in {"query": query, "key": key, "value": value}.items():
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
    width, features = query.shape[-1], len(bias[0]) if len(bias) > 1 else 0
    for name, size, found, most in (("query", "D", width, MOST_WIDTH), ("bias", "F", features, MOST_FEATURES)):
        if found > most:
            raise ValueError(
                f'{name} must have {size} <= {most} for backend="triton", got {found}; '
                'backend="reference" and backend="streaming" take any size'
            )
    refuse_forward_mode("biased_attention", (*scores, value))
    common = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    if common == torch.bfloat16 and interpreted():
        common = torch.float32  # the interpreter would multiply the bit patterns
    query_position = torch.where(mask[..., None], query_position, 0).float()
    # The seed stays on the device: nobody waits for it, and a CUDA graph draws a new one at every replay.
    seed = torch.randint(1 << 62, (), device=value.device) if dropout else None
    tensors = [query.to(common), key.to(common), query_position, key_position.float(), mask, logit.float(), *bias]
    out, mass, weights, _ = _attend(tensors, value.to(common), reach, scale, dropout, seed, keep)
    return out.to(value.dtype), mass, weights if keep else None


@operator("biased_attention_triton")
def _attend(
    scores: Sequence[Tensor],
    value: Tensor,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, mass, kept, lse = _empty(scores, value, reach, scale, dropout, seed, keep)
    launch = _Launch(scores, value, reach, scale, dropout, seed)
    launch.over_queries("attend", out=out, lse=lse)
    parts = mass.new_empty(launch.chunks, *mass.shape)
    # Zeros, because nothing is stored for keys that are taken out.
    launch.over_keys("weigh_keys", lse=lse, mass=parts, kept=kept.zero_() if keep else None)
    return out, parts.sum(0), kept, lse


@_attend.register_fake
def _empty(
    scores: Sequence[Tensor],
    value: Tensor,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = scores[0].shape
    keys = value.shape[2]

    def room(*shape: int) -> Tensor:
        return value.new_empty(batch, heads, *shape, dtype=torch.float32)

    out = value.new_empty(batch, heads, tokens, width)
    return out, room(keys), room(tokens if keep else 0, keys), room(tokens)


@operator("biased_attention_triton_backward")
def _backward(
    into_out: Tensor,
    into_mass: Tensor | None,
    into_kept: Tensor | None,
    scores: Sequence[Tensor],
    value: Tensor,
    out: Tensor,
    kept: Tensor | None,
    lse: Tensor,
    reach: float,
    scale: float,
    dropout: float,
    seed: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    query, key, query_position, key_position, mask, logit, *bias = scores
    into_out = into_out.contiguous()
    into_mass = None if into_mass is None else into_mass.contiguous()
    into_kept = None if into_kept is None else into_kept.contiguous()
    arriving = {"into_out": into_out, "into_mass": into_mass, "into_kept": into_kept}
    launch = _Launch(scores, value, reach, scale, dropout, seed, kept=kept, lse=lse, **arriving)
    if not launch.key_programs:
        return [_zeros(tensor) for tensor in (*scores, value)]

    def room(*shape: int) -> Tensor:
        return query.new_empty(shape, dtype=torch.float32)

    def per_group(parts: Tensor) -> Tensor:
        summed = parts.sum(0)
        return summed.view(len(summed), logit.shape[1], -1, *summed.shape[2:]).sum(2)

    into_query, delta = torch.empty_like(query, memory_format=torch.contiguous_format), room(*lse.shape)
    moved = room(*lse.shape, 2) if bias and wanted[2] else None
    launch.over_queries("into_queries", out=out, delta=delta, into_query=into_query, into_position=moved)
    into_query_position = _zeros(query_position) if moved is None else moved.sum(1)

    parts = (launch.chunks, *key.shape)
    into_key, into_value, into_logit = room(*parts), room(*parts), room(*parts[:-1])
    moved = room(*parts[:-1], 2) if bias and wanted[3] else None
    into_bias, fineness = None, None
    if any(wanted[6:-1]) and launch.kind == "table":
        into_bias = torch.zeros(bias[0].shape, dtype=torch.int64, device=query.device)
        # Whole numbers know no NaN, so that a NaN among the scores comes in by their size.
        bound = _sum_of_changes(into_out, into_mass, into_kept, value, mask, launch.keep_scale)
        fineness = _LARGEST_SUM / torch.where(lse.isnan().any(), torch.nan, bound)
    elif any(wanted[6:-1]):
        into_bias = room(launch.key_programs, launch.size * (launch.size + 5) + 1)
    launch.over_keys(
        "into_keys",
        delta=delta,
        fineness=fineness,
        into_key=into_key,
        into_value=into_value,
        into_logit=into_logit,
        into_position=moved,
        into_bias=into_bias,
    )
    into_key_position = _zeros(key_position) if moved is None else per_group(moved)
    if into_bias is None:
        into_biases = [_zeros(part) for part in bias]
    elif fineness is not None:
        into_biases = [(into_bias / fineness.double()).to(bias[0].dtype)]
    else:
        into_biases = _network_gradients(into_bias.view(*launch.key_programs_per_head, -1), bias)
    return [
        into_query,
        into_key.sum(0).to(key.dtype),
        into_query_position,
        into_key_position,
        _zeros(mask),
        per_group(into_logit),
        *into_biases,
        into_value.sum(0).to(value.dtype),
    ]


@_backward.register_fake
def _like_inputs(
    into_out: Any, into_mass: Any, into_kept: Any, scores: Sequence[Tensor], value: Tensor, *_: Any
) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (*scores, value)]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scores, value, ctx.reach, ctx.scale, ctx.dropout, seed, keep = inputs
    out, _, kept, lse = output
    ctx.save_for_backward(*scores, value, out, kept if keep else None, lse, seed)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _pass_back(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    *scores, value, out, kept, lse, seed = ctx.saved_tensors
    wanted = [*ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    into_out, into_mass, into_kept, _ = gradients
    arriving = torch.zeros_like(out) if into_out is None else into_out, into_mass, None if kept is None else into_kept
    into = _backward(*arriving, scores, value, out, kept, lse, ctx.reach, ctx.scale, ctx.dropout, seed, wanted)
    *into_scores, into_value = (grad if want else None for grad, want in zip(into, wanted, strict=True))
    return into_scores, into_value, None, None, None, None, None


_attend.register_autograd(_pass_back, setup_context=_remember)


refuse_gradient(_backward, FIRST_ONLY)


class _Launch:
    """Runs kernels on one problem: keeps what all of them take, and cuts the problem into tiles."""

    def __init__(
        self,
        scores: Sequence[Tensor],
        value: Tensor,
        reach: float,
        scale: float,
        dropout: float,
        seed: Tensor | None,
        **known: Tensor | None,
    ) -> None:
        query, key, query_position, key_position, mask, logit, *bias = (tensor.contiguous() for tensor in scores)
        self.device = query.device
        batch, heads, tokens, width = query.shape
        _, groups, keys = logit.shape
        self.kind = {0: "none", 1: "table", 6: "network"}[len(bias)]
        self.size = bias[0].shape[-2] if bias else 1  # side of the table, or features of the network
        tile, self.options = _tile(self.kind, query.dtype, _padded(width), _padded(self.size))
        query_tiles, key_tiles = _ceil(tokens, tile["QUERIES"]), _ceil(keys, tile["KEYS"])
        share = max(1, _ceil(_programs(self.device), batch * heads * key_tiles or 1))
        chunk = max(1, _ceil(query_tiles, share))  # in tiles
        self.chunks = max(1, _ceil(query_tiles, chunk))
        self.query_programs = batch * heads * query_tiles
        self.key_programs_per_head = (batch * groups, heads // groups, key_tiles * self.chunks)
        self.key_programs = batch * heads * key_tiles * self.chunks
        self.keep_scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        self.arguments = known | {
            "query": query,
            "key": key,
            "value": value.contiguous(),
            "query_position": query_position,
            "key_position": key_position,
            "mask": mask,
            "logit": logit,
            "bias": _flat(bias),
            "seed": seed,
            "queries": tokens,
            "keys": keys,
            "scale": scale,
            "reach": reach,
            "dropout": dropout,
            "keep_scale": self.keep_scale,
            "chunk": chunk * tile["QUERIES"],
            "chunks": self.chunks,
            "HEADS": heads,
            "GROUPS": groups,
            "DIM": width,
            "WIDTH": _padded(width),
            "KIND": self.kind,
            "SIZE": self.size,
            "HIDDEN": _padded(self.size),
            "PRECISION": _precision(self.device),
            "BIAS_PRECISION": _precision(self.device) if query.dtype == torch.float32 else "tf32",
            **tile,
        }

    def over_queries(self, name: str, **own: Tensor | None) -> None:
        """Run a kernel with one program for each tile of queries."""
        self._run(name, self.query_programs, own)

    def over_keys(self, name: str, **own: Tensor | None) -> None:
        """Run a kernel with one program for each tile of keys and chunk of queries."""
        self._run(name, self.key_programs, own)

    def _run(self, name: str, programs: int, own: dict[str, Tensor | None]) -> None:
        kernel = getattr(_kernels(), name)
        arguments = self.arguments | own
        if programs:
            with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
                kernel[(programs,)](**{name: arguments[name] for name in kernel.arg_names}, **self.options)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _network_gradients(shares: Tensor, network: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the six tensors from the shares of programs [B G, I, programs, entries]."""
    total = shares.sum((0, 2))  # [I, entries]; a program has its head's row of w3 and b3 alone
    sizes = [*(part.numel() for part in network[:4]), network[4].shape[1], 1]
    *hidden, w3, b3 = torch.split(total, sizes, dim=1)
    parts = [*(part.sum(0) for part in hidden), w3, b3]
    return [part.reshape(like.shape).to(like.dtype, copy=True) for part, like in zip(parts, network, strict=True)]


def _sum_of_changes(
    into_out: Tensor,
    into_mass: Tensor | None,
    into_kept: Tensor | None,
    value: Tensor,
    mask: Tensor,
    keep_scale: float,
) -> Tensor:
    """A bound of the sum of the absolute gradients of all scores.

    Those of one query come to twice its largest gradient of a weight at most: a product of a gradient of the output
    and a value, the gradient of a mass, and that of a weight that was kept.
    """
    norm = torch.linalg.vector_norm
    steps = torch.where(mask[:, None], norm(into_out, dim=-1, dtype=torch.float32), 0).sum(-1)  # [B, H]
    largest = steps * norm(value, dim=-1, dtype=torch.float32).amax(-1) * keep_scale
    if into_mass is not None:
        largest = largest + into_mass.abs().amax(-1) * mask.sum(-1, keepdim=True)
    if into_kept is not None:
        largest = largest + torch.where(mask[:, None], norm(into_kept, math.inf, dim=-1), 0).sum(-1)
    total: Tensor = largest.sum()
    return 2 * total.clamp(min=torch.finfo(torch.float32).eps ** 2)


def _flat(bias: Sequence[Tensor]) -> Tensor | None:
    """The tensors of a network in a row, or the table."""
    if len(bias) > 1:
        return torch.cat([part.flatten().float() for part in bias])
    return bias[0] if bias else None


def _kernels() -> ModuleType:
    return load(f"{__package__}._triton_kernels")


def _tile(kind: str, dtype: torch.dtype, width: int, hidden: int) -> tuple[dict[str, int], dict[str, int]]:
    """Queries and keys of a tile, as many as registers hold, and options of a launch.

    A network has all its hidden features of all queries and one key in them; a table has four nodes of every pair; and
    products of float32 have three parts.
    """
    queries = (4096 if dtype == torch.float32 else 8192) // width
    if kind == "network":
        tile, large = {"QUERIES": min(64, queries, 2048 // hidden), "KEYS": 16}, width > 128 or hidden > 32
    else:
        most = 32 if kind == "table" or dtype == torch.float32 else 64
        tile, large = {"QUERIES": min(most, queries), "KEYS": 32}, width > 128
    tile["QUERIES"] = max(16, tile["QUERIES"])
    # The assembler gives up on large kernels, and leaves nearly all in memory, unless it is told to use all registers.
    return tile, {"num_warps": 8, "maxnreg": 255} if large else {"num_warps": 4}


def _programs(device: torch.device) -> int:
    """How many programs make a device busy."""
    if device.type != "cuda":
        return _PROGRAMS
    return _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def _precision(device: torch.device) -> str:
    """How float32 products are taken: as in torch, TF32 if it is allowed, else in three TF32 products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    matmul = torch.backends.cuda.matmul
    allowed = getattr(matmul, "fp32_precision", None) or ("tf32" if matmul.allow_tf32 else "ieee")
    return "tf32" if allowed == "tf32" else "tf32x3"


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _padded(width: int) -> int:
    """The width of a tile: a power of two, and enough for tensor cores."""
    return max(16, 1 << (width - 1).bit_length())
