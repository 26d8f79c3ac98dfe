r"""Density-peak clustering of a bag's tokens (DPC-KNN).

*What is computed.* With :math:`D_{ij} = \lVert z_i - z_j \rVert / \sqrt{C}`, the density of a token is
:math:`\log \rho_i = -\operatorname{mean} D_{ij}^2` over its nearest neighbors. Its gap :math:`\xi_i` is the distance to
the nearest denser token. The tokens with the largest :math:`\log \rho_i + \log \xi_i` are the centers, and every token
joins its nearest center. Only the neighbors and the gaps need all pairs of tokens. ``_distances.py`` states these two
searches, and three files implement them.

*How it is tiled.* ``_reference.py`` holds the N x N matrix. ``_streaming.py`` and ``_triton.py`` go through tiles of it
and keep O(N) numbers. Bags are clustered one after the other, without their padding.

*What its backward is.* There is none. Clusters are integers, and scores only choose the centers.

*What it costs.* O(N^2 C) operations. The streamed search does most of them as one to two matrix products N x N x C.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._checks import check_choice, check_count, check_floating, check_mask, check_shape
from ..._operators import operator
from ..._precision import wide_dtype
from .._triton_runtime import available, load
from ..content_order import content_order
from ._distances import ROUNDINGS, Distances
from ._plain import plain_density_peaks
from ._reference import DenseDistances, distances
from ._streaming import StreamedDistances

__all__ = ["DensityPeaks", "density_peaks", "plain_density_peaks"]

_TILE_PAIRS = 2**20  # Distances to centers that are held at once.
BACKENDS = ("auto", "reference", "streaming", "triton")
_LARGEST_DENSE_BAG = 128  # The dense matrix is faster up to this size, measured on a CPU.


class DensityPeaks(NamedTuple):
    """The result of :func:`density_peaks`.

    Attributes:
        assignment: the cluster of each token [B, N], numbered by descending score; -1 for padding.
        centers: the token at the center of each cluster [B, K]; -1 where a bag has fewer than K tokens.
        score: log density plus log distance [B, N]; -inf for padding, for repeats of a denser token, and for all
            tokens of a bag whose tokens are equal.
    """

    assignment: Tensor
    centers: Tensor
    score: Tensor


def density_peaks(
    tokens: Tensor, clusters: int, *, neighbors: int = 5, mask: Tensor | None = None, backend: str = "auto"
) -> DensityPeaks:
    r"""Cluster the tokens of every bag around density peaks.

    With :math:`D_{ij} = \lVert z_i - z_j \rVert / \sqrt{C}`, a token is a center if it is dense and far from any denser
    token:

    .. math::
        \log \rho_i = -\operatorname{mean}_{j \in \mathrm{kNN}(i)} D_{ij}^2, \qquad
        \xi_i = \min_{j : \rho_j > \rho_i} D_{ij}, \qquad
        \mathrm{score}_i = \log \rho_i + \log \xi_i

    The nearest neighbors include the token itself. The :math:`\xi` of the densest token is the largest distance of the
    bag. The tokens with the best scores are the centers. Every token joins its nearest center, and a center joins
    itself. Of tokens with equal densities or scores, the first in :func:`~disentangled_mil.ops.content_order` is the
    denser or better one, so the order of the tokens does not change the clusters. The result has no gradient. Padding
    is removed first, so it may hold any value, even NaN.

    Args:
        tokens: finite tokens. Half precisions are computed in float32.
        clusters: number of clusters K of a bag.
        neighbors: number of nearest tokens that define the density. A bag with fewer tokens uses all of them.
        mask: mask of the tokens (True = real token). Without it all tokens are real.
        backend: implementation. ``"reference"`` holds all pairwise distances. ``"streaming"`` finds the same clusters,
            bit for bit, tile by tile. ``"triton"`` runs kernels on a CUDA device, which round differently.
            ``"auto"`` takes the reference up to 128 tokens, then kernels on a CUDA device with Triton, else streaming.
            An explicit choice is never replaced.

    Shape:
        ``tokens`` [B, N, C], ``mask`` [B, N].

    Returns:
        A :class:`DensityPeaks` with ``assignment`` [B, N], ``centers`` [B, K] and ``score`` [B, N].

    Raises:
        TypeError: ``tokens`` is not floating-point, ``mask`` is not bool, or a count is not an integer.
        ValueError: a shape, a count or ``backend`` is not as described, or ``"triton"`` is chosen for tokens that
            are not on a CUDA device.
        RuntimeError: ``"triton"`` is chosen and Triton is not installed.

    Source:
        Rodriguez & Laio, Science 2014; Zeng et al., CVPR 2022; equations 8-11 of the paper.

    Differs from the source:
        Densities are kept as logarithms, because they underflow. Ties are broken by content instead of random noise.
        The number of clusters is absolute, not a share of the tokens.

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
    if backend == "auto":  # Chosen here, so that a compiled graph does not depend on the number of tokens.
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
    """The result of bags without real tokens, which also tells a compiler the shapes."""
    dtype = wide_dtype(tokens)
    assignment = torch.full(tokens.shape[:2], -1, device=tokens.device)  # [B, N]
    centers = torch.full((tokens.shape[0], clusters), -1, device=tokens.device)  # [B, K]
    score = torch.full(tokens.shape[:2], -math.inf, dtype=dtype, device=tokens.device)  # [B, N]
    return assignment, centers, score


def _fastest(tokens: Tensor) -> str:
    """The implementation that ``"auto"`` stands for."""
    if tokens.shape[1] <= _LARGEST_DENSE_BAG:
        return "reference"
    return "triton" if tokens.is_cuda and available() else "streaming"


def _implementation(backend: str) -> type[Distances]:
    if backend == "triton":
        kernels: type[Distances] = load(f"{__package__}._triton").KernelDistances
        return kernels
    return DenseDistances if backend == "reference" else StreamedDistances


def _cluster(tokens: Tensor, clusters: int, neighbors: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster one bag of real tokens [n, C], n >= 1."""
    pairs = _implementation(backend)(tokens)
    unit = math.sqrt(tokens.shape[1])

    nearest = pairs.nearest(min(neighbors, len(tokens))) / unit  # [n, k]
    # Copies that differ by rounding only must be equally dense. Their gaps and scores keep the difference.
    rounding = ROUNDINGS * torch.finfo(tokens.dtype).eps * (tokens.amax(0) - tokens.amin(0)).max()
    log_density = -nearest.where(nearest > rounding, 0).square().mean(1)  # [n]
    descending = log_density.argsort(descending=True, stable=True)  # [n]
    rank = torch.empty_like(descending).scatter_(0, descending, torch.arange(len(tokens), device=tokens.device))  # [n]
    score = log_density + (pairs.gap(rank) / unit).log()  # [n]

    centers = score.argsort(descending=True, stable=True)[:clusters]  # [K]
    parts = torch.split(tokens, max(1, _TILE_PAIRS // len(centers)))
    assignment = torch.cat([distances(part, tokens[centers]).argmin(1) for part in parts])  # [n]
    assignment[centers] = torch.arange(len(centers), device=tokens.device)
    return assignment, centers, score
