"""Both magnifications of a sample should agree on where the genes look."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_choice,
    check_count,
    check_floating,
    check_interval,
    check_mask,
    check_names,
)
from .._precision import widened
from ..ops import attention_overlap


@runtime_checkable
class AttentionMap(Protocol):
    """Lazy attention maps of a batch, such as layers of ``nn`` return."""

    @property
    def shape(self) -> Sequence[int]:
        """(B, H, and the maps' own sizes)."""
        ...

    def resolution_with(self, other: Any) -> int | None:
        """The resolution at which these maps and others are compared by default.

        Args:
            other: maps of the same numbers of bags and heads.

        Returns:
            Cells per side of a common grid, or None where the maps need no common grid.
        """
        ...

    def overlap(self, other: Any, resolution: int | None) -> Tensor:
        """Inner products of the maps of this batch with those of another.

        Args:
            other: maps of the same numbers of bags and heads.
            resolution: cells per side of a common grid on which the mass of the maps is compared; None where the maps
                need no common grid.

        Returns:
            Inner products [B, B].
        """
        ...


Attention: TypeAlias = Tensor | AttentionMap


def inter_magnification_consistency(
    attention_a: Attention | Mapping[str, Attention],
    attention_b: Attention | Mapping[str, Attention],
    *,
    weight: float = 1.0,
    normalize: str = "rows",
    unbiased: bool = True,
    alignment: float = 0.0,
    resolution: int | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """DEV loss: the overlap of a sample's two attention maps must not vary between samples.

    ``C_ij = <a_i, b_j>`` over flattened maps; ``normalize="rows"`` divides each row of C by its Euclidean
    norm. ``loss = weight * var_i C_ii + alignment * mean_i (1 - cos(a_i, b_i))``, summed over subspaces.

    A variance is blind to what all samples share: uniform attention makes it exactly 0. ``alignment`` adds a
    term that is 0 only where a sample's two maps are proportional.

    Args:
        attention_a: attention at one magnification: a tensor, a lazy attention map, or either per subspace.
        attention_b: attention at the other magnification, likewise.
        weight: weight of the variance (the released configuration: 1e4, which fits only normalized rows).
        normalize: ``"rows"`` (free of the scale of the maps, so of the number of tokens) or ``"none"``.
        unbiased: whether to divide the variance by B - 1 instead of B.
        alignment: weight of one minus the mean cosine.
        resolution: cells per side of the common grid on which lazy maps are compared by the mass of their keys. By
            default, full maps of equal shape that are small enough to be kept are compared entry by entry, and all
            others on a grid of 16 x 16, whose cost does not depend on the size of the maps. Samples differ there by
            orders of magnitude more, and so does the weight that suits. If some batches would be compared in one way
            and some in the other, give a resolution for all of them.
        present: True where a sample has both magnifications; the others are left out. All have both by default.

    Shape:
        Tensors: [B, ...], equal in both. Lazy maps: equal B and H, any N and J. ``present`` [B].

    Returns:
        A scalar in at least float32. With B = 1 the variance is 0 and so is its gradient.

    Raises:
        TypeError: an argument is no attention, or the two are of different kinds.
        ValueError: shapes or subspaces differ, an option is out of range, ``resolution`` came with tensors,
            or the batch is empty.

    Source:
        Eq. 7 of the paper.

    Differs from the source:
        The paper does not normalize C and its variance is the biased one
        (``normalize="none", unbiased=False``). The released code is the default with ``weight=1e4``.
        ``alignment`` and the common grid are ours.

    Example:
        >>> import torch
        >>> from disentangled_mil import inter_magnification_consistency
        >>> a = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> inter_magnification_consistency(a, a, normalize="none")
        tensor(0.1250)
        >>> inter_magnification_consistency(a, a, alignment=1.0) < 0.1
        tensor(True)
    """
    check_choice("normalize", normalize, ("rows", "none"))
    check_interval("weight", weight, 0.0, float("inf"))
    check_interval("alignment", alignment, 0.0, float("inf"))
    if resolution is not None:
        check_count("resolution", resolution)
    losses = []
    for name, a, b in _pairs(attention_a, attention_b):
        products = _among(_inner_products(name, a, b, resolution), present)
        overlap = products(a, b)  # [B, B]
        misalignment = _mean(1 - _cosine(overlap, products(a, a), products(b, b))) if alignment else 0.0
        losses.append(weight * _deviation(overlap, normalize, unbiased) + alignment * misalignment)
    return torch.stack(losses).sum()


def batch_similarity_consistency(a: Tensor, b: Tensor, *, reduction: str = "sum") -> Tensor:
    """How differently two magnifications relate the samples of a batch to each other.

    Per head the maps' inner products among the samples, ``G = A A^T``, rows divided by their Euclidean norm;
    the difference of the two magnifications' G is averaged over heads, squared and divided by B.

    Args:
        a: attention maps at one magnification.
        b: attention maps at the other magnification; their sizes beyond B and H may differ from those of ``a``.
        reduction: sum (``"sum"``) or mean (``"mean"``) over the B x B matrix, or ``"none"``.

    Shape:
        ``a`` [B, H, ...]; ``b`` [B, H, ...].

    Returns:
        A scalar, or [B, B] for ``"none"``, in at least float32.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: B or H differ or are 0, a map has no dimension, or ``reduction`` is unknown.

    Source:
        The released configuration's auxiliary term; similarity-preserving distillation (Tung and Mori, ICCV
        2019).

    Example:
        >>> import torch
        >>> from disentangled_mil import batch_similarity_consistency
        >>> a = torch.eye(2).reshape(2, 1, 2)
        >>> batch_similarity_consistency(a, torch.ones(2, 1, 3), reduction="none")
        tensor([[0.0429, 0.2500],
                [0.2500, 0.0429]])
    """
    check_choice("reduction", reduction, ("sum", "mean", "none"))
    for name, maps in (("a", a), ("b", b)):
        check_floating(name, maps)
        if maps.ndim < 3 or 0 in maps.shape[:2]:
            raise ValueError(f"{name} must have shape [B, H, ...] with B, H >= 1, got {list(maps.shape)}")
    if a.shape[:2] != b.shape[:2]:
        raise ValueError(f"b must have the B and H of a, {list(a.shape[:2])}, got {list(b.shape[:2])}")
    heads = zip(a.unbind(1), b.unbind(1), strict=True)
    difference = torch.stack([_relations(x) - _relations(y) for x, y in heads])  # [H, B, B]
    matrix = difference.mean(0).square() / a.shape[0]  # [B, B]
    if reduction == "none":
        return matrix
    return matrix.sum() if reduction == "sum" else matrix.mean()


def _pairs(
    a: Attention | Mapping[str, Attention], b: Attention | Mapping[str, Attention]
) -> list[tuple[str, Attention, Attention]]:
    """The two attentions of every subspace, with what to call them in errors."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        check_names("attention_b", b, a)
        if not a:
            raise ValueError("attention_a must have at least one subspace, got none")
        return [(f"[{subspace!r}]", a[subspace], b[subspace]) for subspace in a]
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise TypeError(
            "attention_a and attention_b must both be mappings or neither, "
            f"got {type(a).__name__} and {type(b).__name__}"
        )
    return [("", a, b)]


def _inner_products(name: str, a: Attention, b: Attention, resolution: int | None) -> Callable[[Any, Any], Tensor]:
    """Check that two attentions fit each other, and choose the function of their inner products [B, B]."""
    if _is_map(a) and _is_map(b):
        bags, others = list(a.shape[:2]), list(b.shape[:2])
        if bags != others:
            raise ValueError(f"attention_b{name} must have the [B, H] of attention_a{name}, {bags}, got {others}")
        if bags[0] == 0:
            raise ValueError(f"attention_a{name} must hold at least one sample, got shape {list(a.shape)}")
        # The products of both maps, and of each with itself, are taken in one space.
        if resolution is None:
            resolution = a.resolution_with(b)
        return lambda one, other: one.overlap(other, resolution)
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        raise TypeError(
            f"attention_a{name} and attention_b{name} must both be tensors or both attention maps, "
            f"got {type(a).__name__} and {type(b).__name__}"
        )
    if resolution is not None:
        raise ValueError(f"resolution must be None for tensors, which have no positions, got {resolution}")
    for argument, values in (("attention_a", a), ("attention_b", b)):
        check_floating(argument + name, values)
        if values.ndim < 2:
            raise ValueError(f"{argument}{name} must have shape [B, ...], got {list(values.shape)}")
    if a.shape != b.shape:
        raise ValueError(
            f"attention_b{name} must have the shape of attention_a{name}, {list(a.shape)}, got {list(b.shape)}"
        )
    check_batch(f"attention_a{name}", a)
    return lambda one, other: attention_overlap(one.flatten(1), other.flatten(1))


def _among(products: Callable[[Any, Any], Tensor], present: Tensor | None) -> Callable[[Any, Any], Tensor]:
    """Inner products among the samples that have both magnifications."""
    if present is None:
        return products

    def among(one: Any, other: Any) -> Tensor:
        every = products(one, other)
        check_mask("present", present, "B", {"B": len(every)})
        return every[present][:, present]

    return among


def _mean(values: Tensor) -> Tensor:
    """The mean [B] -> scalar; 0 of no value."""
    return values.sum() / max(len(values), 1)


def _is_map(attention: object) -> TypeGuard[AttentionMap]:
    # Not by isinstance, which finds no property in a compiled region.
    return hasattr(attention, "overlap")


def _deviation(overlap: Tensor, normalize: str, unbiased: bool) -> Tensor:
    """Variance of the diagonal [B, B] -> scalar; 0 with a gradient path for B = 1 instead of 0 / 0."""
    diagonal = (_unit_rows(overlap) if normalize == "rows" else overlap).diagonal()  # [B]
    deviations = (diagonal - diagonal.mean()).square()
    return deviations.sum() / max(len(diagonal) - unbiased, 1)


def _cosine(overlap: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """Cosine of each sample's two maps, from the inner products [B, B] -> [B]; 0 where a map is all zeros."""
    norms = [own.diagonal().masked_fill(own.diagonal() == 0, 1).sqrt() for own in (own_a, own_b)]
    return overlap.diagonal() / norms[0] / norms[1]


def _relations(maps: Tensor) -> Tensor:
    """Row-normalized similarities among the samples [B, ...] -> [B, B]."""
    return _unit_rows(attention_overlap(maps.flatten(1), maps.flatten(1)))


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm [B, F] -> [B, F]; rows of zeros stay, with a finite gradient."""
    rows = widened(rows)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # [B, 1]
    return rows / norm.masked_fill(norm == 0, 1)
