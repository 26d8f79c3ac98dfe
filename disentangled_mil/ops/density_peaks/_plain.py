"""Density peaks of all bags at once, without a step that depends on values: the formula that exporters take.

The distances are those of a product in float64. The results are those of the reference unless two densities, scores or
distances differ by rounding only.
"""

from math import inf

import torch
from torch import Tensor

from ..content_order import content_order
from ._distances import ROUNDINGS


def plain_density_peaks(
    tokens: Tensor, mask: Tensor, clusters: int, neighbors: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Assignment, centers and score of the operator of density peaks, whatever the backend."""
    order = content_order(tokens, mask)  # [B, N]
    ordered = torch.where(mask[..., None], tokens, 0).gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
    real = mask.gather(1, order)
    squares = _squared_distances(ordered)  # [B, N, N]
    rounding = ROUNDINGS * torch.finfo(tokens.dtype).eps * _spread(ordered, real)  # [B]
    apart = squares > rounding.square()[:, None, None]  # Copies that differ by rounding are at distance zero.
    squares = torch.where(apart, squares, 0).masked_fill(~real[:, None], inf)
    nearest = torch.nn.functional.pad(squares, (0, neighbors), value=inf).topk(neighbors, largest=False).values
    found = nearest.isfinite()
    density = -torch.where(found, nearest, 0).sum(2) / found.sum(2).clamp(min=1)  # [B, N]
    rank = _ranks(density.masked_fill(~real, -inf))
    gap = squares.masked_fill(rank[:, None] >= rank[..., None], inf).amin(2)
    largest = squares.masked_fill(~(real[:, None] & real[..., None]), 0).amax((1, 2))[:, None]
    gap = torch.where(rank == 0, largest, gap)
    score = (density + gap.log() / 2).masked_fill(~real, -inf)

    chosen = _descending(torch.nn.functional.pad(score, (0, clusters), value=-inf))[:, :clusters]  # [B, K]
    present = torch.arange(clusters, device=mask.device) < mask.sum(1, keepdim=True)
    chosen = torch.where(present, chosen, 0)
    to_center = squares.gather(1, chosen[..., None].expand(-1, -1, squares.shape[2]))  # [B, K, N]
    to_center = to_center.masked_fill(~present[..., None], inf)
    own = (chosen[..., None] == torch.arange(squares.shape[2], device=mask.device)) & present[..., None]
    cluster = to_center.masked_fill(own, -1).argmin(1)  # [B, N]
    cluster = torch.where(real, cluster, -1)
    return (
        torch.zeros_like(cluster).scatter(1, order, cluster),
        torch.where(present, order.gather(1, chosen), -1),
        torch.zeros_like(score).scatter(1, order, score),
    )


def _squared_distances(tokens: Tensor) -> Tensor:
    """Squared distances divided by C [B, N, N], from a product in float64 that loses no digit of float32."""
    wide = tokens.double()
    norms = wide.square().sum(2)  # [B, N]
    product = wide @ wide.mT
    squares = (norms[:, :, None] + norms[:, None] - 2 * product).clamp(min=0)
    mean: Tensor = (squares / tokens.shape[2]).to(tokens.dtype)
    return mean


def _spread(tokens: Tensor, real: Tensor) -> Tensor:
    """The largest range of a channel over the real tokens, in units of distances [B]."""
    low, high = (tokens.masked_fill(~real[..., None], fill) for fill in (inf, -inf))
    widest = (high.amax(1) - low.amin(1)).amax(1)
    spread: Tensor = torch.where(real.any(1), widest, 0) / tokens.shape[2] ** 0.5
    return spread


def _descending(values: Tensor) -> Tensor:
    """Indices [B, N] in descending order; of equal values, the first comes first."""
    return values.sort(dim=1, descending=True, stable=True).indices


def _ranks(values: Tensor) -> Tensor:
    """The rank of every value in descending order, from 0 [B, N]."""
    order = _descending(values)
    return torch.zeros_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
