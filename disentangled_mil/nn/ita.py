"""Informative token aggregation (ITA): the tokens of a bag become a few prototypes.

*When the anchors move.* Some training loops validate in training mode, so a forward pass must not move the anchors. The
prototypes pass through the operator :func:`_watch`, whose backward pass calls :meth:`ITA.follow`. A hook on the
prototypes would do the same, but breaks a compiled graph. The operator is given the number of its layer instead of the
anchors. Autograd would save the anchors for the backward pass, and raise an error where another backward pass has moved
them in between.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_count, check_floating, check_interval, check_mask, check_shape
from .._operators import operator
from ..ops import density_peaks, match_prototypes, segment_mean, segment_softmax

__all__ = ["ITA", "ITAOutput"]


class ITAOutput(NamedTuple):
    """The result of :class:`ITA`.

    Attributes:
        prototypes: prototypes by slot [B, K, C].
        assignment: the slot of each token [B, N]; -1 for padding.
        weights: the share of each token in its prototype [B, N]; zero for padding.
        centers: the token at the center of each prototype [B, K]; -1 where there is none.
    """

    prototypes: Tensor
    assignment: Tensor
    weights: Tensor
    centers: Tensor


class ITA(nn.Module):
    r"""Aggregate the tokens of a bag into prototypes: density-peak clusters, then weighted means.

    .. math::
        z = \mathrm{LayerNorm}(x), \qquad
        p_k = \sum_{i : a_i = k} w_i z_i, \qquad
        w_i = \frac{e^{\mathrm{Linear}(z_i)}}{\sum_{j : a_j = a_i} e^{\mathrm{Linear}(z_j)}}

    The clusters :math:`a` are those of :func:`density_peaks`, and their order differs from bag to bag. The layer
    therefore keeps one *anchor* per slot. :func:`match_prototypes` matches the prototypes of each bag to the anchors by
    their cosine, in training and in evaluation, so prototype k means the same in every bag. In training mode, every
    backward pass through the prototypes moves each anchor toward those of its slot:

    .. math:: \mathrm{anchor}_k \leftarrow m\,\mathrm{anchor}_k + (1 - m)\,\operatorname{mean}_b p_{bk}

    A forward pass alone moves nothing. If a teacher decides the order of the prototypes, the anchors follow those given
    to :meth:`follow` instead.

    Args:
        dim: width C of a token.
        prototypes: number of prototypes K.
        neighbors: number of nearest tokens that define the density of :func:`density_peaks`.
        momentum: share m of itself that an anchor keeps in one step, in [0, 1]. With 1 the anchors never move.
        order: order of the prototypes. ``"anchor"`` is described above; ``"peak"`` is the descending peak score of the
            released code, without anchors.
        eps: number that is added to the sum of a prototype's weights exp(Linear(z)), which overflow in float32 above a
            score of 88. The released code has 1e-6.
        self_following: flag that lets backward passes in training mode move the anchors. False leaves them to
            :meth:`follow`.

    Shape:
        ``tokens`` [B, N, C] in any floating-point type, ``mask`` [B, N] (True = real token).

    Returns:
        An :class:`ITAOutput`. The weights sum to one in every prototype that has tokens. A bag with fewer than K real
        tokens fills the other slots with the weighted mean of all its tokens. A bag without real tokens has zero
        prototypes.

    Raises:
        TypeError: ``tokens`` is not floating-point, ``mask`` is not bool, or an option has the wrong type.
        ValueError: a shape or an option is not as described.

    Source:
        Equations 8-12 of the paper.

    Differs from the source:
        The paper leaves the order of the prototypes open; here it is the order of the anchors. K is a number, not a
        share of the tokens. Weights are divided by their sum alone, without ``eps``.

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
        # The QR decomposition of the initialization needs at least float32.
        anchors = torch.empty(prototypes, dim, dtype=torch.promote_types(default, torch.float32))
        self.register_buffer("anchors", nn.init.orthogonal_(anchors).to(default) if order == "anchor" else None)
        self._enter()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> ITAOutput:
        """Aggregate the tokens of every bag."""
        sizes = check_shape("tokens", tokens, "B N C", {"C": self.dim})
        check_floating("tokens", tokens)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        check_mask("mask", mask, "B N", sizes)

        normed = self.norm(tokens.where(mask[..., None], 0).to(self.norm.weight.dtype))  # [B, N, C]
        significance = self.significance(normed).squeeze(2).to(normed)  # [B, N]
        assignment, centers, _ = density_peaks(normed, self.prototypes, neighbors=self.neighbors, mask=mask)
        weights = segment_softmax(significance, assignment, self.prototypes)
        # Without eps only the ratios of the weights matter, and those of the softmax cannot overflow.
        merging = significance.exp() if self.eps else weights
        prototypes = segment_mean(normed, assignment, self.prototypes, weight=merging, eps=self.eps)

        whole = mask.long() - 1  # All real tokens are one segment.
        weight = segment_softmax(significance, whole, 1)  # [B, N]
        everything = segment_mean(normed, whole, 1, weight=weight)  # [B, 1, C]
        prototypes = prototypes.where(centers[..., None] >= 0, everything)

        if self.anchors is not None:
            anchors = self.anchors.expand_as(prototypes)
            cluster = match_prototypes(prototypes, anchors, present=centers >= 0, metric="cosine")  # [B, K], by slot
            slot = cluster.argsort(1)  # [B, K], by cluster
            assignment = slot.gather(1, assignment.clamp(min=0)).where(mask, -1)
            centers = centers.gather(1, cluster)
            prototypes = prototypes.gather(1, cluster[..., None].expand_as(prototypes))
            if self.training and self.self_following and torch.is_grad_enabled() and prototypes.requires_grad:
                prototypes = _watch(prototypes, centers >= 0, self._number)
        return ITAOutput(prototypes, assignment, weights, centers)

    @torch.no_grad()
    def follow(self, prototypes: Tensor, present: Tensor | None = None) -> None:
        """Move the anchors toward prototypes whose slots are known.

        Prototypes that are not finite are left out. Mixed precision makes such values in a step that it then skips. In
        a distributed run every process follows its own bags, and ``DistributedDataParallel`` keeps the anchors of
        rank 0.

        Args:
            prototypes: prototypes by slot. They are detached here.
            present: mask of the prototypes that a bag has. Without it all are present.

        Shape:
            ``prototypes`` [B, K, C], ``present`` [B, K].

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enter()  # A copy has anchors of its own.

    def _enter(self) -> None:
        self._number = next(_numbers)
        _layers[self._number] = self

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return (
            f"{self.dim}, prototypes={self.prototypes}, neighbors={self.neighbors}, "
            f"momentum={self.momentum}, order={self.order!r}, eps={self.eps}, self_following={self.self_following}"
        )


_numbers = count()
_layers: WeakValueDictionary[int, ITA] = WeakValueDictionary()


@operator("watch_prototypes")
def _watch(prototypes: Tensor, present: Tensor, layer: int) -> Tensor:
    return prototypes.clone()


@_watch.register_fake
def _watched(prototypes: Tensor, present: Tensor, layer: int) -> Tensor:
    return torch.empty_like(prototypes)


def _once(size: int, dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Tensor, Any]:
    """Batched gradients belong to one backward pass, so the anchors move once; only the gradient is batched."""
    return _follow(*arguments), dims[0]


@operator("follow_prototypes", over_batches=_once)
def _follow(gradient: Tensor, prototypes: Tensor, present: Tensor, layer: int) -> Tensor:
    # A compiler would move it into the forward pass if it did not take the gradient, or drop it without a result.
    if layer in _layers:
        _layers[layer].follow(prototypes, present)
    return gradient.clone()


@_follow.register_fake
def _followed(gradient: Tensor, prototypes: Tensor, present: Tensor, layer: int) -> Tensor:
    return torch.empty_like(gradient)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    prototypes, present, ctx.layer = inputs
    ctx.save_for_backward(prototypes, present)


def _pass_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    prototypes, present = ctx.saved_tensors
    return _follow(gradient, prototypes, present, ctx.layer), None, None


_watch.register_autograd(_pass_back, setup_context=_remember)
