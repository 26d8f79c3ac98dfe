"""Anchors that follow prototypes when the gradient of these arrives: a forward pass alone teaches nothing."""

from typing import Any

import torch
from torch import Tensor

from .._operators import operator


@operator("follow", changes=("anchors",))
def _follow(anchors: Tensor, prototypes: Tensor, present: Tensor, momentum: float) -> None:
    finite = prototypes.isfinite().all(2) & present  # [B, K]
    count = finite.sum(0)[:, None]  # [K, 1]
    mean = prototypes.where(finite[..., None], 0).to(anchors).sum(0) / count.clamp(min=1)  # [K, C]
    anchors.copy_(mean.lerp(anchors, momentum).where(count > 0, anchors))


@operator("followed")
def _followed(prototypes: Tensor, anchors: Tensor, present: Tensor, momentum: float) -> Tensor:
    return prototypes.clone()


def follow(anchors: Tensor, prototypes: Tensor, present: Tensor, momentum: float) -> None:
    r"""Move anchors toward the mean of the prototypes that are present and finite.

    .. math:: \mathrm{anchor}_k \leftarrow m\,\mathrm{anchor}_k + (1 - m)\,\operatorname{mean}_b p_{bk}

    Args:
        anchors: anchors, changed in place.
        prototypes: prototypes.
        present: True = the bag has this prototype.
        momentum: share m of itself that an anchor keeps.

    Shape:
        ``anchors`` [K, C], ``prototypes`` [B, K, C], ``present`` [B, K].

    Source:
        None; the paper leaves the order of prototypes open.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import follow
        >>> anchors = torch.zeros(1, 2)
        >>> follow(anchors, torch.ones(3, 1, 2), torch.ones(3, 1, dtype=torch.bool), 0.75)
        >>> anchors
        tensor([[0.2500, 0.2500]])
    """
    with torch.no_grad():
        _follow(anchors, prototypes.detach(), present, float(momentum))


def followed(prototypes: Tensor, anchors: Tensor, present: Tensor, momentum: float) -> Tensor:
    """The prototypes, which anchors :func:`follow` in every backward pass that goes through them.

    Args:
        prototypes: prototypes.
        anchors: anchors, changed in place by the backward pass.
        present: True = the bag has this prototype.
        momentum: share of itself that an anchor keeps.

    Shape:
        ``prototypes`` [B, K, C], ``anchors`` [K, C], ``present`` [B, K].

    Returns:
        A copy of the prototypes; gradients pass unchanged.

    Source:
        None; the paper leaves the order of prototypes open.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import followed
        >>> anchors, prototypes = torch.zeros(1, 2), torch.ones(3, 1, 2, requires_grad=True)
        >>> loss = followed(prototypes, anchors, torch.ones(3, 1, dtype=torch.bool), 0.75).sum()
        >>> before = anchors.clone()
        >>> loss.backward()
        >>> before.tolist(), anchors.tolist()
        ([[0.0, 0.0]], [[0.25, 0.25]])
    """
    followed: Tensor = _followed(prototypes, anchors, present, float(momentum))
    return followed


@_followed.register_fake
def _shape(prototypes: Tensor, anchors: Tensor, present: Tensor, momentum: float) -> Tensor:
    return torch.empty_like(prototypes)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prototypes, ctx.anchors, present, ctx.momentum = inputs
    ctx.save_for_backward(prototypes.detach(), present)


def _pass_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    prototypes, present = ctx.saved_tensors
    _follow(ctx.anchors, prototypes, present, ctx.momentum)
    return gradient, None, None, None


_followed.register_autograd(_pass_back, setup_context=_remember)
