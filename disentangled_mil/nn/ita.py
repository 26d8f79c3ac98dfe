"""Intra-modal token aggregation: a bag's tokens gathered into a few prototypes."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import (
    check_choice,
    check_count,
    check_floating,
    check_interval,
    check_mask,
    check_shape,
)
from .._operators import operator
from ..ops.density_peaks import density_peaks
from ..ops.segment_mean import segment_mean, segment_softmax

__all__ = ["ITA", "ITAOutput"]


class ITAOutput(NamedTuple):
    """Prototypes, and which tokens they were made of."""

    prototypes: Tensor  # [B, K, C]
    assignment: Tensor  # [B, N]
    weights: Tensor  # [B, N]
    centers: Tensor  # [B, K]


class ITA(nn.Module):
    r"""Gather a bag's tokens into prototypes: density peaks, then means weighted by learned significance.

    .. math::
        z = \mathrm{LayerNorm}(x), \qquad
        p_k = \sum_{i : a_i = k} w_i z_i, \qquad
        w_i = \frac{e^{\mathrm{Linear}(z_i)}}{\sum_{j : a_j = a_i} e^{\mathrm{Linear}(z_j)}}

    with the clusters :math:`a` of `density_peaks`. The peaks of a bag have no names. So that prototype k
    means the same in every bag, the layer keeps one *anchor* per slot: each bag's prototypes are matched to
    the anchors (Hungarian method on cosine distance), one to one, in training and evaluation alike. In
    training every anchor follows the prototypes of its slot,

    .. math:: \mathrm{anchor}_k \leftarrow m\,\mathrm{anchor}_k + (1 - m)\,\operatorname{mean}_b p_{bk}

    or, where a teacher decides which prototype is which, the prototypes given to `follow`.

    Args:
        dim: Width C of a token.
        prototypes: Number of prototypes K.
        neighbors: How many nearest tokens make the density of `density_peaks`.
        momentum: What an anchor keeps of itself in one step, in [0, 1]; with 1 the anchors never move.
        order: ``"anchor"``, or ``"peak"`` for the order of falling peak score, as released; then without
            anchors.
        eps: added to the sum of a prototype's weights exp(Linear(z)); the released code has 1e-6.
        self_following: Whether forward in training mode moves the anchors; False leaves them to `follow`.

    Shape:
        tokens [B, N, C] in any floating-point type, mask [B, N] (True = real token).

    Returns:
        ``prototypes`` [B, K, C], by slot; ``assignment`` [B, N], the slot of each token, -1 for padding;
        ``weights`` [B, N], which sum to one in every prototype that has tokens, zero for padding; ``centers``
        [B, K], the token at the center of each prototype, -1 where there is none. A bag with fewer than K
        real tokens fills the slots left over with the weighted mean of all its tokens; a bag without real
        tokens has zero prototypes.

    Raises:
        TypeError: ``tokens`` is not floating-point, ``mask`` not bool, or an option has the wrong type.
        ValueError: a shape or an option is not as described.

    Source:
        Equations 8-12 of the paper.

    Differs from the source:
        The order of the prototypes, which the paper leaves open, is the anchors'; K is a number, not a share
        of the tokens; weights are divided by their sum alone (``eps``).

    Example:
        >>> import torch
        >>> from disentangled_mil import ITA
        >>> ita = ITA(8, prototypes=2)
        >>> found = ita(torch.randn(1, 30, 8))
        >>> found.prototypes.shape, found.assignment.shape
        (torch.Size([1, 2, 8]), torch.Size([1, 30]))
    """

    anchors: Tensor | None

    def __init__(
        self,
        dim: int,
        prototypes: int = 2,
        *,
        neighbors: int = 5,
        momentum: float = 0.99,
        order: str = "anchor",
        eps: float = 0.0,
        self_following: bool = True,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("prototypes", prototypes)
        check_count("neighbors", neighbors)
        check_interval("momentum", momentum, 0, 1)
        check_choice("order", order, ("anchor", "peak"))
        check_interval("eps", eps, 0, float("inf"))
        self.dim = dim
        self.prototypes = prototypes
        self.neighbors = neighbors
        self.momentum = momentum
        self.order = order
        self.eps = eps
        self.self_following = self_following
        self.norm = nn.LayerNorm(dim)
        self.significance = nn.Linear(dim, 1)
        default = torch.get_default_dtype()
        anchors = torch.empty(prototypes, dim, dtype=torch.promote_types(default, torch.float32))  # half has no QR
        self.register_buffer("anchors", nn.init.orthogonal_(anchors).to(default) if order == "anchor" else None)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> ITAOutput:
        sizes = check_shape("tokens", tokens, "B N C", {"C": self.dim})
        check_floating("tokens", tokens)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        check_mask("mask", mask, "B N", sizes)

        normed = self.norm(tokens.where(mask[..., None], 0).to(self.norm.weight.dtype))  # [B, N, C]
        significance = self.significance(normed).squeeze(2).to(normed)  # [B, N]
        assignment, centers, _ = density_peaks(normed, self.prototypes, neighbors=self.neighbors, mask=mask)
        weights = segment_softmax(significance, assignment, self.prototypes)
        # Without eps only the ratios of the weights matter, and the softmax's cannot overflow.
        merging = significance.exp() if self.eps else weights
        prototypes = segment_mean(normed, assignment, self.prototypes, weight=merging, eps=self.eps)

        whole = mask.long() - 1  # one segment of all real tokens
        weight = segment_softmax(significance, whole, 1)  # [B, N]
        everything = segment_mean(normed, whole, 1, weight=weight)  # [B, 1, C]
        prototypes = prototypes.where(centers[..., None] >= 0, everything)

        if self.anchors is not None:
            slot = _match(prototypes.detach(), self.anchors, centers >= 0)  # [B, K], by cluster
            cluster = slot.argsort(1)  # [B, K], by slot
            assignment = slot.gather(1, assignment.clamp(min=0)).where(mask, -1)
            centers = centers.gather(1, cluster)
            prototypes = prototypes.gather(1, cluster[..., None].expand_as(prototypes))
            if self.training and self.self_following:
                self.follow(prototypes, centers >= 0)
        return ITAOutput(prototypes, assignment, weights, centers)

    @torch.no_grad()
    def follow(self, prototypes: Tensor, present: Tensor | None = None) -> None:
        """Move the anchors toward prototypes whose slots are known.

        Prototypes that are not finite, as mixed precision makes them in a step it then skips, are left out.
        Every process of a distributed run follows its own bags; ``DistributedDataParallel`` keeps those of rank 0.

        Args:
            prototypes: Prototypes by slot, detached here.
            present: True = the bag has this prototype. All are there without it.

        Shape:
            prototypes [B, K, C], present [B, K].

        Raises:
            TypeError: ``present`` is not bool.
            ValueError: a shape is not as described.
            RuntimeError: the layer has no anchors.

        Example:
            >>> import torch
            >>> from disentangled_mil import ITA
            >>> ita = ITA(8, prototypes=2, momentum=0.5)
            >>> ita.follow(torch.ones(1, 2, 8))
        """
        if self.anchors is None:
            raise RuntimeError(f"follow needs anchors, which only order='anchor' has, got order={self.order!r}")
        sizes = check_shape("prototypes", prototypes, "B K C", {"K": self.prototypes, "C": self.dim})
        finite = prototypes.isfinite().all(2)  # [B, K]
        if present is not None:
            check_shape("present", present, "B K", sizes)
            if present.dtype != torch.bool:
                raise TypeError(f"present must be a bool tensor (True = the bag has it), got {present.dtype}")
            finite = finite & present
        count = finite.sum(0)[:, None]  # [K, 1]
        mean = prototypes.where(finite[..., None], 0).to(self.anchors).sum(0) / count.clamp(min=1)  # [K, C]
        self.anchors.copy_(mean.lerp(self.anchors, self.momentum).where(count > 0, self.anchors))

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, prototypes={self.prototypes}, neighbors={self.neighbors}, "
            f"momentum={self.momentum}, order={self.order!r}, eps={self.eps}, self_following={self.self_following}"
        )


@operator("match")
def _match(prototypes: Tensor, anchors: Tensor, present: Tensor) -> Tensor:
    """The slot of each prototype [B, K]; those not present take the slots left over."""
    toward = F.normalize(prototypes.double(), dim=2) @ F.normalize(anchors.double(), dim=1).T  # [B, K, K]
    similarity = toward.nan_to_num().where(present[..., None], 0).cpu().numpy()
    slots = [linear_sum_assignment(bag, maximize=True)[1].tolist() for bag in similarity]
    return torch.tensor(slots, dtype=torch.int64, device=prototypes.device).reshape(present.shape)


@_match.register_fake
def _(prototypes: Tensor, anchors: Tensor, present: Tensor) -> Tensor:
    return torch.empty_like(present, dtype=torch.int64)
