"""Density-peak clustering of a bag's tokens (DPC-KNN)."""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..._checks import check_choice, check_count, check_floating, check_mask, check_shape
from ..._operators import operator
from ..._precision import wide_dtype
from .._triton_runtime import available, load
from ..content_order import content_order
from . import _reference, _streaming

__all__ = ["DensityPeaks", "density_peaks"]

_TILE_PAIRS = 2**20
_ROUNDINGS = 64  # of the spread of the tokens; those that are closer are copies
BACKENDS = ("auto", "reference", "streaming", "triton")
_LARGEST_DENSE_BAG = 128  # up to here one dense matrix beats screening (measured on a CPU)


class DensityPeaks(NamedTuple):
    """What `density_peaks` found."""

    assignment: Tensor  # [B, N]
    centers: Tensor  # [B, K]
    score: Tensor  # [B, N]


def density_peaks(
    tokens: Tensor, clusters: int, *, neighbors: int = 5, mask: Tensor | None = None, backend: str = "auto"
) -> DensityPeaks:
    r"""Cluster every bag's tokens around its density peaks.

    With :math:`D_{ij} = \lVert z_i - z_j \rVert / \sqrt{C}`, a token is a center when it is dense and far
    from any denser token:

    .. math::
        \log \rho_i = -\operatorname{mean}_{j \in \mathrm{kNN}(i)} D_{ij}^2, \qquad
        \xi_i = \min_{j : \rho_j > \rho_i} D_{ij}, \qquad
        \mathrm{score}_i = \log \rho_i + \log \xi_i

    The nearest neighbors include the token itself; the densest token has the largest distance of the bag as
    its :math:`\xi`. The best scores are the centers, every token joins its nearest center and a center joins
    itself. Ties go to the token that is first in `content_order`, so that clusters do not depend on the order of
    the tokens. Nothing is differentiable. Padding is taken out first: it may hold anything, NaN too.

    Args:
        tokens: Finite tokens. Half precisions are computed in float32.
        clusters: How many clusters K each bag is divided into.
        neighbors: How many nearest tokens make the density; fewer in a bag with fewer tokens.
        mask: True = real token. All tokens are real without it.
        backend: ``"reference"`` holds all pairwise distances; ``"streaming"`` finds the same clusters, bit
            for bit, tile by tile; ``"triton"`` does so in kernels on a CUDA device, but for the rounding of
            distances; ``"auto"`` takes the reference for up to 128 tokens, else kernels where there are any, or
            streams. An explicit choice is never replaced.

    Shape:
        tokens [B, N, C], mask [B, N].

    Returns:
        ``assignment`` [B, N], the cluster of each token, numbered by falling score, -1 for padding;
        ``centers`` [B, K], the token at the center of each cluster, -1 where a bag has fewer than K tokens;
        ``score`` [B, N], log density + log distance, -inf for padding and for repeats of a denser token.

    Raises:
        TypeError: ``tokens`` is not floating-point, ``mask`` not bool, or a count is no integer.
        ValueError: a shape, a count or ``backend`` is not as described, or kernels are asked for elsewhere than on
            a CUDA device.
        RuntimeError: kernels are asked for without Triton.

    Source:
        Rodriguez & Laio, Science 2014; Zeng et al., CVPR 2022; equations 8-11 of the paper.

    Differs from the source:
        Log-densities instead of densities, which underflow; ties are broken by content instead of by random
        noise; an absolute number of clusters instead of a share of the tokens.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import density_peaks
        >>> tokens = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [12.0]]])
        >>> found = density_peaks(tokens, 2, neighbors=2)
        >>> found.assignment.tolist(), found.centers.tolist()
        ([[0, 0, 0, 1, 1]], [[0, 3]])
    """
    sizes = check_shape("tokens", tokens, "B N C")
    check_floating("tokens", tokens)
    check_count("clusters", clusters)
    check_count("neighbors", neighbors)
    check_choice("backend", backend, BACKENDS)
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    check_mask("mask", mask, "B N", sizes)
    return DensityPeaks(*_density_peaks(tokens.detach(), mask, clusters, neighbors, backend))


@operator("density_peaks")
def _density_peaks(
    tokens: Tensor, mask: Tensor, clusters: int, neighbors: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "auto":  # chosen here, so that a graph does not depend on the number of tokens
        backend = _fastest(tokens)
    assignment, centers, score = _empty(tokens, mask, clusters, neighbors, backend)
    with torch.autocast(tokens.device.type, enabled=False):
        order = content_order(tokens, mask)
        for bag, count in enumerate(mask.sum(1).tolist()):
            real = order[bag, :count]
            if count:
                cluster, center, peak = _cluster(tokens[bag, real].to(score.dtype), clusters, neighbors, backend)
                assignment[bag, real] = cluster
                centers[bag, : len(center)] = real[center]
                score[bag, real] = peak
    return assignment, centers, score


@_density_peaks.register_fake
def _empty(tokens: Tensor, mask: Tensor, clusters: int, neighbors: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """The result for bags without real tokens."""
    dtype = wide_dtype(tokens)
    assignment = torch.full(tokens.shape[:2], -1, device=tokens.device)  # [B, N]
    centers = torch.full((tokens.shape[0], clusters), -1, device=tokens.device)  # [B, K]
    score = torch.full(tokens.shape[:2], -math.inf, dtype=dtype, device=tokens.device)  # [B, N]
    return assignment, centers, score


def _fastest(tokens: Tensor) -> str:
    """What ``"auto"`` stands for."""
    if tokens.shape[1] <= _LARGEST_DENSE_BAG:
        return "reference"
    return "triton" if tokens.is_cuda and available() else "streaming"


def _implementation(backend: str) -> ModuleType:
    """The module with the distances; the kernels' is imported at the first call."""
    if backend == "triton":
        return load(f"{__package__}._triton")
    return _reference if backend == "reference" else _streaming


def _cluster(tokens: Tensor, clusters: int, neighbors: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster one bag of real tokens [n, C], n >= 1."""
    distances = _implementation(backend).Distances(tokens)
    unit = math.sqrt(tokens.shape[1])

    nearest = distances.nearest(min(neighbors, len(tokens))) / unit  # [n, k]
    # Copies that differ by rounding only are equally dense.
    rounding = _ROUNDINGS * torch.finfo(tokens.dtype).eps * (tokens.amax(0) - tokens.amin(0)).max()
    log_density = -nearest.where(nearest > rounding, 0).square().mean(1)  # [n]
    falling = log_density.argsort(descending=True, stable=True)  # [n]
    rank = torch.empty_like(falling).scatter_(0, falling, torch.arange(len(tokens), device=tokens.device))  # [n]
    score = log_density + (distances.gap(rank) / unit).log()  # [n]

    centers = score.argsort(descending=True, stable=True)[:clusters]  # [K]
    parts = torch.split(tokens, max(1, _TILE_PAIRS // len(centers)))
    assignment = torch.cat([_reference.distances(part, tokens[centers]).argmin(1) for part in parts])  # [n]
    assignment[centers] = torch.arange(len(centers), device=tokens.device)
    return assignment, centers, score
