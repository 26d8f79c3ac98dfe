"""Projection of conflicting gradients: pure functions of rows of numbers, without waiting for a device."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .._precision import widened


class Coordinated(NamedTuple):
    """The result of :func:`coordinate`.

    Attributes:
        gradients: coordinated gradients [S, R, P]. Rows without conflict are bit for bit those given.
        cosine: cosines of the gradients given [pairs, R], in the order of ``itertools.combinations(range(S), 2)``; 0 if
            a gradient has no direction.
        projected: mask of the rows that were changed [S, R].
    """

    gradients: Tensor
    cosine: Tensor
    projected: Tensor


def coordinate(gradients: Tensor, confidence: Tensor) -> Coordinated:
    r"""Remove from every gradient what conflicts with the gradients of more confident subspaces.

    In descending confidence, row by row,

    .. math:: g'_s = \arg\min_x \|x - g_s\| \quad\text{such that}\quad \langle x, g'_t \rangle \ge 0
              \text{ for all } t \text{ with confidence}_t > \text{confidence}_s,

    which is the nearest point of a cone. For two subspaces in conflict it is the projection of :math:`g_s` onto the
    orthogonal complement of :math:`g_t`. For more subspaces it is the projection onto the complement of a subset of
    the :math:`g'_t`. All :math:`2^n` subsets of the :math:`n` more confident subspaces are tried, and the longest
    projection that conflicts with none of them is taken. Projecting on one after the other would change more than
    needed, and its result would depend on the order of equally confident subspaces. The cost doubles with every
    subspace.

    Subspaces of equal confidence do not change each other, and a confidence of NaN changes nothing. A row that is zero
    or not finite is left as it is and conflicts with nothing. Two gradients do not conflict within rounding,
    :math:`|\cos| \le 32\,\epsilon`. A projection that is shorter than rounding is zero.

    Args:
        gradients: gradients of corresponding parameters, in any floating-point type. The arithmetic has at least
            float32.
        confidence: confidence of each subspace. Only the order counts.

    Shape:
        ``gradients`` [S, R, P], R rows of P numbers that are independent of each other; ``confidence`` [S].

    Returns:
        A :class:`Coordinated`.

    Source:
        *Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization*, equation 6.

    Differs from the source:
        The paper has two subspaces. The cone extends its rule to any number.

    Example:
        >>> gradients = torch.tensor([[[1.0, 1.0]], [[-2.0, 1.0]]])  # [S, R, P]
        >>> coordinate(gradients, torch.tensor([0.9, 0.6])).gradients[1]
        tensor([[-1.5000,  1.5000]])
    """
    exact = widened(gradients)
    size = exact.abs().amax(-1, keepdim=True)  # [S, R, 1]
    # Scaling keeps squares from underflow and overflow.
    scaled = torch.where(size.isfinite() & (size > 0), exact / size, 0.0)  # [S, R, P]
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)  # [S, R, 1]
    unit = _unit(scaled)
    cosine = torch.stack([_dot(a, b).squeeze(-1) for a, b in combinations(unit, 2)])  # [pairs, R]

    order = confidence.argsort(descending=True, stable=True)  # [S]
    ranked = confidence.index_select(0, order)
    first, *others = unit.index_select(0, order)
    directions, nearest, projected = [first], [first], [torch.zeros_like(first[:, 0], dtype=torch.bool)]
    for rank, gradient in enumerate(others, start=1):
        above = [torch.where(ranked[t] > ranked[rank], directions[t], 0.0) for t in range(rank)]
        projected.append(_conflicts(gradient, above).squeeze(-1))
        nearest.append(_nearest(gradient, above))
        directions.append(_unit(nearest[-1]))

    back = order.argsort()
    changed = torch.stack(projected).index_select(0, back)  # [S, R]
    moved = torch.stack(nearest).index_select(0, back) * norm * size
    result = torch.where(changed.unsqueeze(-1), moved.to(gradients.dtype), gradients)
    return Coordinated(result, cosine, changed)


def _nearest(gradient: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The longest projection that conflicts with none of the others, which is also the nearest; else zero [R, P]."""
    best = torch.zeros_like(gradient)  # [R, P]
    length = torch.full_like(gradient[:, :1], _rounding(gradient))  # [R, 1]
    for candidate in _projections(gradient, others, basis=[]):
        norm = torch.linalg.vector_norm(candidate, dim=-1, keepdim=True)
        better = (norm > length) & ~_conflicts(candidate, others)
        best, length = torch.where(better, candidate, best), torch.where(better, norm, length)
    return best


def _projections(gradient: Tensor, others: Sequence[Tensor], basis: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the projections onto the orthogonal complements of all subsets of ``others``, each subset once.

    Args:
        gradient: gradient that is orthogonal to the basis.
        others: directions that may still be chosen.
        basis: orthonormal basis of the directions that are chosen already.

    Yields:
        Projections [R, P].
    """
    yield gradient
    for chosen, axis in enumerate(others):
        for _ in range(2):  # One pass leaves rounding errors if the axis nearly lies in the span of the basis.
            for known in basis:
                axis = axis - _dot(axis, known) * known
            axis = _unit(axis)
        rest = gradient - _dot(gradient, axis) * axis
        yield from _projections(rest, others[chosen + 1 :], [*basis, axis])


def _conflicts(gradient: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Whether a row points against any of the others by more than rounding [R, 1]."""
    return torch.stack([_dot(gradient, other) for other in others]).amin(0) < -_rounding(gradient)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length one. Rows that are shorter than rounding become zero."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(norm > _rounding(rows), rows / norm, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products [..., 1], without a matrix product, which may run in TF32."""
    return (a * b).sum(-1, keepdim=True)


def _rounding(rows: Tensor) -> float:
    """The rounding error of an inner product of two vectors of length one."""
    return 32 * torch.finfo(rows.dtype).eps
