"""Projection of conflicting gradients: pure mathematics on rows of numbers, free of GPU synchronization."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .._precision import widened


class Coordinated(NamedTuple):
    """Coordinated gradients, and what was found and done."""

    gradients: Tensor
    cosine: Tensor
    projected: Tensor


def coordinate(gradients: Tensor, confidence: Tensor) -> Coordinated:
    r"""Remove from every gradient what conflicts with the gradients of more confident subspaces.

    In falling confidence, row by row,

    .. math:: g'_s = \arg\min_x \|x - g_s\| \quad\text{such that}\quad \langle x, g'_t \rangle \ge 0
              \text{ for all } t \text{ with confidence}_t > \text{confidence}_s,

    the nearest point of a cone. For two subspaces in conflict this is the projection of :math:`g_s` onto the
    orthogonal complement of :math:`g_t`. For more it is the projection onto the complement of some of the
    :math:`g'_t`: of all :math:`2^n` choices among :math:`n` more confident subspaces, the longest projection
    that conflicts with none of them. Projecting on one after the other instead would change more than needed
    and depend on the order of equally confident rivals. The price doubles with every subspace, which is
    nothing for the handful this is made for.

    Equal confidences decide nothing: neither subspace is changed for the other's sake, nor for or by one
    whose confidence is NaN. A gradient that is zero or not finite in a row is left as it is there and is
    nobody's rival. A conflict smaller than rounding, :math:`|\cos| \le 32\,\epsilon`, is none; a rest
    smaller than that is zero.

    Args:
        gradients: gradients of corresponding parameters, any floating-point type; the arithmetic is done in
            float32 or, if that is wider, in their own type.
        confidence: how confident each subspace is; only the order counts.

    Shape:
        gradients: [S, R, P], R rows of P numbers that are treated independently; confidence: [S].

    Returns:
        ``gradients`` [S, R, P], rows without conflict bit for bit as they came; ``cosine`` [pairs, R]
        before the projection, pairs as ``itertools.combinations(range(S), 2)``, 0 where there is no
        direction; ``projected`` [S, R], whether the row was changed.

    Source:
        *Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization*,
        eq. 6.

    Differs from the source:
        The paper has two subspaces; the cone extends its rule to any number.

    Example:
        >>> gradients = torch.tensor([[[1.0, 1.0]], [[-2.0, 1.0]]])  # [S, R, P]
        >>> coordinate(gradients, torch.tensor([0.9, 0.6])).gradients[1]
        tensor([[-1.5000,  1.5000]])
    """
    exact = widened(gradients)
    size = exact.abs().amax(-1, keepdim=True)  # [S, R, 1]
    # Scaled, so that squares neither vanish nor overflow.
    scaled = torch.where(size.isfinite() & (size > 0), exact / size, 0.0)  # [S, R, P]
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)  # [S, R, 1]
    unit = _unit(scaled)
    cosine = torch.stack([_dot(a, b).squeeze(-1) for a, b in combinations(unit, 2)])  # [pairs, R]

    order = confidence.argsort(descending=True, stable=True)  # [S]
    ranked = confidence.index_select(0, order)
    first, *others = unit.index_select(0, order)
    directions, nearest, projected = [first], [first], [torch.zeros_like(first[:, 0], dtype=torch.bool)]
    for rank, gradient in enumerate(others, start=1):
        rivals = [torch.where(ranked[t] > ranked[rank], directions[t], 0.0) for t in range(rank)]
        projected.append(_conflicts(gradient, rivals).squeeze(-1))
        nearest.append(_nearest(gradient, rivals))
        directions.append(_unit(nearest[-1]))

    back = order.argsort()
    changed = torch.stack(projected).index_select(0, back)  # [S, R]
    moved = torch.stack(nearest).index_select(0, back) * norm * size
    result = torch.where(changed.unsqueeze(-1), moved.to(gradients.dtype), gradients)
    return Coordinated(result, cosine, changed)


def _nearest(gradient: Tensor, rivals: Sequence[Tensor]) -> Tensor:
    """Return the longest of the projections that conflicts with no rival, which is the nearest; else zero."""
    best = torch.zeros_like(gradient)  # [R, P]
    length = torch.full_like(gradient[:, :1], _rounding(gradient))  # [R, 1]
    for candidate in _projections(gradient, rivals, basis=[]):
        norm = torch.linalg.vector_norm(candidate, dim=-1, keepdim=True)
        better = (norm > length) & ~_conflicts(candidate, rivals)
        best, length = torch.where(better, candidate, best), torch.where(better, norm, length)
    return best


def _projections(gradient: Tensor, rivals: Sequence[Tensor], basis: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the projections onto the orthogonal complements of all choices of rivals, each choice once.

    ``basis`` is an orthonormal basis of the rivals already chosen, to which ``gradient`` is orthogonal.
    """
    yield gradient
    for chosen, axis in enumerate(rivals):
        for _ in range(2):  # once leaves rounding along the basis when the axis is nearly within it
            for known in basis:
                axis = axis - _dot(axis, known) * known
            axis = _unit(axis)
        rest = gradient - _dot(gradient, axis) * axis
        yield from _projections(rest, rivals[chosen + 1 :], [*basis, axis])


def _conflicts(gradient: Tensor, rivals: Sequence[Tensor]) -> Tensor:
    """Return [R, 1], whether a row points against any rival by more than rounding."""
    return torch.stack([_dot(gradient, rival) for rival in rivals]).amin(0) < -_rounding(gradient)


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length one; those no longer than rounding become zero."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norm > _rounding(rows), rows / norm, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return row-wise inner products [..., 1]; products and sums, because matrix products may run in TF32."""
    return (a * b).sum(-1, keepdim=True)


def _rounding(rows: Tensor) -> float:
    """Return how far inner products of vectors of length one may be off."""
    return 32 * torch.finfo(rows.dtype).eps
