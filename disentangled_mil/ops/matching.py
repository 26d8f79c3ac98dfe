r"""One-to-one matching of a bag's prototypes to subspaces.

*What is computed.* It is the one-to-one choice of a bag's prototypes with the smallest total distance to the subspaces.
The distances of a bag are a small S x K matrix, and the Hungarian method solves the assignment exactly.

*What its backward is.* There is none, because the result is a choice.

*What it costs.* O(S K C) operations and O(S^2 K) steps of the Hungarian method per bag, on the CPU. The call waits for
the device of the prototypes.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_choice, check_floating, check_shape
from .._operators import operator

__all__ = ["match_prototypes"]

METRICS = ("euclidean", "cosine")


def match_prototypes(
    prototypes: Tensor, subspaces: Tensor, *, present: Tensor | None = None, metric: str = "euclidean"
) -> Tensor:
    r"""Match every subspace of a bag to a prototype of its own, at the smallest total distance.

    .. math::
        \operatorname*{arg\,min}_{\pi} \sum_s d(\mathrm{prototype}_{\pi(s)}, \mathrm{subspace}_s)
        \quad \text{over one-to-one } \pi

    Args:
        prototypes: prototypes of every bag.
        subspaces: subspace vectors of every bag, or anchors of the subspaces.
        present: mask of the prototypes (True = the bag has it). Without it all are present. Subspaces prefer prototypes
            that are present; missing prototypes go to the subspaces that are left.
        metric: ``"euclidean"`` for the squared distance, ``"cosine"`` for one minus the cosine.

    Shape:
        ``prototypes`` [B, K, C], ``subspaces`` [B, S, C] with S <= K, ``present`` [B, K].

    Returns:
        The index of each subspace's prototype [B, S], int64, without a gradient. A bag with a value that is not finite
        keeps its prototypes in their order. Mixed precision makes such values in a step that it then skips.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ``present`` is not bool.
        ValueError: a shape differs, ``metric`` is unknown, or there are fewer prototypes than subspaces.

    Source:
        Hungarian method (``scipy.optimize.linear_sum_assignment``).

    Differs from the source:
        The paper leaves the order of the prototypes open.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import match_prototypes
        >>> match_prototypes(torch.tensor([[[0.0], [5.0], [1.0]]]), torch.tensor([[[1.1], [0.0]]]))
        tensor([[2, 0]])
    """
    check_choice("metric", metric, METRICS)
    sizes = check_shape("prototypes", prototypes, "B K C")
    sizes = check_shape("subspaces", subspaces, "B S C", sizes) | sizes
    check_floating("prototypes", prototypes)
    check_floating("subspaces", subspaces)
    if sizes["K"] < sizes["S"]:
        raise ValueError(f"prototypes must hold K >= S = {sizes['S']} prototypes of each bag, got K = {sizes['K']}")
    if present is None:
        present = torch.ones(prototypes.shape[:2], dtype=torch.bool, device=prototypes.device)
    check_shape("present", present, "B K", sizes)
    if present.dtype != torch.bool:
        raise TypeError(f"present must be a bool tensor (True = the bag has it), got {present.dtype}")
    choice: Tensor = _match_prototypes(prototypes.detach(), subspaces.detach(), present, metric)
    return choice


@operator("match_prototypes")
def _match_prototypes(prototypes: Tensor, subspaces: Tensor, present: Tensor, metric: str) -> Tensor:
    cost = costs(prototypes.cpu().double(), subspaces.cpu().double(), present.cpu(), metric)  # [B, S, K]
    choices = [torch.from_numpy(linear_sum_assignment(bag.numpy())[1]) for bag in cost]
    found = torch.stack(choices) if choices else torch.empty(subspaces.shape[:2], device="cpu")
    return found.to(prototypes.device, torch.int64)


def costs(prototypes: Tensor, subspaces: Tensor, present: Tensor, metric: str) -> Tensor:
    """The cost of every choice [B, S, K] of :func:`match_prototypes`; the sum is finite and smallest for its result.

    A prototype that is missing costs more than all others together. A bag with a value that is not finite costs zero.

    Returns:
        The costs.
    """
    if metric == "cosine":
        cost = -F.normalize(subspaces, dim=2) @ F.normalize(prototypes, dim=2).mT  # [B, S, K]
    else:
        cost = (subspaces[:, :, None] - prototypes[:, None]).square().mean(-1)  # [B, S, K]
    missing = ~present[:, None]  # [B, 1, K]
    finite = (cost.isfinite() | missing).flatten(1).all(1)  # [B]
    size = cost.masked_fill(missing, 0).abs().flatten(1).sum(1)  # [B]
    cost = torch.where(missing, 1 + 2 * size[:, None, None], cost)
    return torch.where(finite[:, None, None], cost, 0)


@_match_prototypes.register_fake
def _choices_like(prototypes: Tensor, subspaces: Tensor, present: Tensor, metric: str) -> Tensor:
    return subspaces.new_empty(subspaces.shape[:2], dtype=torch.int64)
