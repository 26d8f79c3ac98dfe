"""The same work done by other libraries."""

import math
import warnings

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from disentangled_mil.ops import BiasTable

from .case import Outputs, Unavailable, Work
from .inputs import CLUSTERS, NEIGHBORS, AttentionInputs, blobs, with_gradients


def sdpa(size: int, device: torch.device, *, bias: str, backward: bool) -> Work:
    """Run ``scaled_dot_product_attention`` with the bias of every query and key in memory."""
    inputs = AttentionInputs.of(size, device)

    def work() -> Outputs:
        with torch.set_grad_enabled(backward):
            mask = inputs.bias(bias)(inputs.displacement()).squeeze(-1)
            out = scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, attn_mask=mask)
            return with_gradients(out, inputs.leaves, inputs.arriving) if backward else {"result": out}

    return work


def flex(size: int, device: torch.device, *, backward: bool) -> Work:
    """Run compiled ``flex_attention``, which reads the bias from a captured table."""
    if backward and device.type == "cpu":
        raise Unavailable("flex_attention has no backward on a CPU")
    inputs = AttentionInputs.of(size, device)
    attend = torch.compile(_flex, dynamic=False)
    tensors: tuple[Tensor, ...] = inputs.query, inputs.key, inputs.value, inputs.query_position, inputs.key_position
    if not backward:
        tensors = tuple(tensor.detach() for tensor in tensors)  # on a CPU it refuses tensors that need a gradient

    def work() -> Outputs:
        with torch.set_grad_enabled(backward):
            out = attend(inputs.network.table(), *tensors)
            return with_gradients(out, inputs.leaves, inputs.arriving) if backward else {"result": out}

    with warnings.catch_warnings():  # the compiler warns
        warnings.simplefilter("ignore")
        work()  # compile for this size
    return work


def _flex(
    table: BiasTable, query: Tensor, key: Tensor, value: Tensor, query_position: Tensor, key_position: Tensor
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    nodes = table.values[0]
    last = nodes.shape[-1] - 1

    def add_bias(score: Tensor, b: Tensor, h: Tensor, n: Tensor, j: Tensor) -> Tensor:
        x, y = (
            ((query_position[b, n, axis] - key_position[b, h, j, axis]) / table.reach + 1) * (last / 2)
            for axis in (0, 1)
        )
        left, top = (torch.clamp(torch.floor(place), 0, last - 1) for place in (x, y))
        right, down = x - left, y - top
        column, row = left.to(torch.int64), top.to(torch.int64)
        above = nodes[row, column] * (1 - right) + nodes[row, column + 1] * right
        below = nodes[row + 1, column] * (1 - right) + nodes[row + 1, column + 1] * right
        return score + above * (1 - down) + below * down

    out: Tensor = flex_attention(query, key, value, score_mod=add_bias)
    return out


def keops(size: int, device: torch.device) -> Work:
    """Run density peaks with both searches as reductions of KeOps."""
    try:
        from pykeops.torch import LazyTensor
    except ImportError as error:
        raise Unavailable("pykeops is not installed") from error
    tokens = blobs(size, device)[0]

    def squared(points: Tensor) -> "LazyTensor":
        return ((LazyTensor(points[:, None]) - LazyTensor(points[None])) ** 2).sum(-1)

    def work() -> Outputs:
        width = tokens.shape[1]
        log_density = -squared(tokens).Kmin(min(NEIGHBORS, size), dim=1).mean(1) / width  # [N]
        descending = log_density.argsort(descending=True, stable=True)
        sorted_tokens = tokens[descending]
        distance, index = squared(sorted_tokens), torch.arange(size, dtype=tokens.dtype, device=device)
        later = LazyTensor(index[:, None, None]) - LazyTensor(index[None, :, None]) - 0.5
        gap = torch.empty_like(log_density)
        gap[descending] = later.ifelse(distance, math.inf).min(dim=1).squeeze(1)
        gap[descending[0]] = distance.max(dim=1).max()
        score = log_density + (gap / width).log() / 2
        centers = score.argsort(descending=True, stable=True)[:CLUSTERS]
        assignment = torch.cdist(tokens, tokens[centers]).argmin(1)
        assignment[centers] = torch.arange(len(centers), device=device)
        return {"assignment": assignment[None], "centers": centers[None], "score": score[None]}

    return work
