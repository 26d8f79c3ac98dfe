"""Both magnifications of a sample should agree on where the genes look."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from .._checks import (
    check_batch,
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_interval,
    check_mask,
    check_names,
)
from .._precision import widened
from .._processes import Group, gather_rows, of_all, several
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

    def vectors(self, resolution: int | None) -> Tensor:
        """The maps as vectors whose inner products are compared.

        Args:
            resolution: cells per side of a common grid on which the mass of the maps is laid out; None where the maps
                need no common grid.

        Returns:
            One vector per bag [B, F].
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
    process_group: Group | None = None,
) -> Tensor:
    """DEV loss: the overlap of a sample's two attention maps must not vary between samples.

    ``C_ij = <a_i, b_j>`` over flattened maps; ``normalize="rows"`` divides each row of C by its Euclidean
    norm. ``loss = weight * var_i C_ii + alignment * mean_i (1 - cos(a_i, b_i))``, summed over subspaces.

    A variance is blind to what all samples share: uniform attention makes it exactly 0. ``alignment`` adds a
    term that is 0 only where a sample's two maps are proportional.

    In several processes the samples of all count as one batch. All compute the same loss, and gradients that
    ``DistributedDataParallel`` averages are those of the joined batch. So do not weight the loss by the number of a
    process's samples, or weight it so that the weights have the mean 1. All processes must call it equally often.

    Args:
        attention_a: attention at one magnification: a tensor, a lazy attention map, or either per subspace.
        attention_b: attention at the other magnification, likewise.
        weight: weight of the variance (the released configuration: 1e4, which fits only normalized rows).
        normalize: ``"rows"`` (free of the scale of each map of ``attention_a``, and of one scale of all maps of
            ``attention_b``) or ``"none"``.
        unbiased: flag that divides the variance by B - 1 instead of B.
        alignment: weight of one minus the mean cosine.
        resolution: cells per side of the common grid on which lazy maps are compared by the mass of their keys. By
            default, full maps of equal shape that are small enough to be kept are compared entry by entry. All others
            are compared on a grid of 16 x 16, whose cost does not depend on the size of the maps. The loss is larger
            by orders of magnitude on the grid, so ``weight`` must be chosen for it. Give a resolution where the
            batches of one training would differ in how they are compared.
        present: mask of the samples that have both magnifications; the others are left out. All have both by default.
        process_group: processes whose samples count as one batch; all by default. A group of one process keeps the
            loss to its own samples.

    Shape:
        Tensors: [B, ...], equal in both. Lazy maps: equal B and H, any N and J. ``present`` [B].

    Returns:
        A scalar in at least float32. With B = 1 the variance is 0 and so is its gradient.

    Raises:
        TypeError: an argument is no attention, or the two are of different kinds.
        ValueError: shapes or subspaces differ, an option is out of range, ``resolution`` came with tensors, the batch
            is empty, or processes have maps of other sizes without a ``resolution``.

    Source:
        Eq. 7 of the paper.

    Differs from the source:
        The paper does not normalize C and its variance is the biased one
        (``normalize="none", unbiased=False``). The released code is the default with ``weight=1e4``.
        ``alignment`` and the common grid are ours, and that several processes share a batch.

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
    check_flag("unbiased", unbiased)
    check_interval("weight", weight, 0.0, float("inf"))
    check_interval("alignment", alignment, 0.0, float("inf"))
    if resolution is not None:
        check_count("resolution", resolution)
    losses = []
    for name, a, b in _pairs(attention_a, attention_b):
        maps = _Maps(name, a, b, present)
        x, y = _joined(maps, maps.checked_resolution(resolution), process_group)
        overlap = attention_overlap(x, y)  # [B, B]
        misalignment = _mean(1 - _cosine(overlap, x, y)) if alignment else 0.0
        losses.append(weight * _deviation(overlap, normalize, unbiased) + alignment * misalignment)
    return torch.stack(losses).sum()


def batch_similarity_consistency(
    a: Tensor, b: Tensor, *, reduction: str = "sum", process_group: Group | None = None
) -> Tensor:
    """How differently two magnifications relate the samples of a batch to each other.

    Each head has a matrix ``G = A A^T`` of inner products of the samples' maps, with rows divided by their Euclidean
    norm. The difference of the two magnifications' G is averaged over heads, squared and divided by B.

    Args:
        a: attention maps at one magnification.
        b: attention maps at the other magnification; their sizes beyond B and H may differ from those of ``a``.
        reduction: sum (``"sum"``) or mean (``"mean"``) over the B x B matrix, or ``"none"``.
        process_group: processes whose samples count as one batch, as for :func:`inter_magnification_consistency`.

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
    if several(process_group):
        a, b = (_gather_maps(name, maps, process_group) for name, maps in (("a", a), ("b", b)))
    heads = zip(a.unbind(1), b.unbind(1), strict=True)
    difference = torch.stack([_relations(x) - _relations(y) for x, y in heads])  # [H, B, B]
    matrix = difference.mean(0).square() / a.shape[0]  # [B, B]
    if reduction == "none":
        return matrix
    return matrix.sum() if reduction == "sum" else matrix.mean()


def _gather_maps(name: str, maps: Tensor, group: Group | None) -> Tensor:
    """The maps of all processes [B, H, ...] -> [sum of B, H, F]."""
    rows = maps.flatten(1)
    counts, widths = zip(*of_all(list(rows.shape), maps.device, group), strict=True)
    if len(set(widths)) > 1:
        raise ValueError(f"{name} must have maps of one size in all processes, got {list(widths)} entries")
    return gather_rows(rows, counts, group).view(sum(counts), maps.shape[1], -1)


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


class _Maps(NamedTuple):
    """Two attentions of one subspace, with what to call them in errors, and the samples that have both."""

    name: str
    a: Attention
    b: Attention
    present: Tensor | None

    def checked_resolution(self, given: int | None) -> int | None:
        """The resolution at which these maps are compared; the two must fit each other, and tensors have none."""
        name, a, b = self.name, self.a, self.b
        if _is_map(a) and _is_map(b):
            bags, others = list(a.shape[:2]), list(b.shape[:2])
            if bags != others:
                raise ValueError(f"attention_b{name} must have the [B, H] of attention_a{name}, {bags}, got {others}")
            if bags[0] == 0:
                raise ValueError(f"attention_a{name} must hold at least one sample, got shape {list(a.shape)}")
            return a.resolution_with(b) if given is None else given
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            raise TypeError(
                f"attention_a{name} and attention_b{name} must both be tensors or both attention maps, "
                f"got {type(a).__name__} and {type(b).__name__}"
            )
        if given is not None:
            raise ValueError(f"resolution must be None for tensors, which have no positions, got {given}")
        for argument, values in (("attention_a", a), ("attention_b", b)):
            check_floating(argument + name, values)
            if values.ndim < 2:
                raise ValueError(f"{argument}{name} must have shape [B, ...], got {list(values.shape)}")
        if a.shape != b.shape:
            raise ValueError(
                f"attention_b{name} must have the shape of attention_a{name}, {list(a.shape)}, got {list(b.shape)}"
            )
        check_batch(f"attention_a{name}", a)
        return None

    def vectors(self, resolution: int | None) -> tuple[Tensor, Tensor]:
        """Both attentions of the samples that have both, as vectors of one space [B, F]."""
        a, b = (each.flatten(1) if isinstance(each, Tensor) else each.vectors(resolution) for each in (self.a, self.b))
        if self.present is None:
            return a, b
        check_mask("present", self.present, "B", {"B": len(a)})
        return a[self.present], b[self.present]


def _joined(maps: _Maps, resolution: int | None, group: Group | None) -> tuple[Tensor, Tensor]:
    """The vectors of this process's samples, or of all processes'."""
    a, b = maps.vectors(resolution)
    if not several(group):
        return a, b
    counts, widths, resolutions = zip(*of_all([*a.shape, resolution or 0], a.device, group), strict=True)
    if len(set(resolutions)) > 1:
        # The joined batch would be compared on the common grid as well.
        a, b = maps.vectors(max(resolutions))
    elif len(set(widths)) > 1:
        raise ValueError(
            f"attention_a{maps.name} must have maps of one size in all processes, or resolution must be given, "
            f"got {list(widths)} entries"
        )
    return gather_rows(a, counts, group), gather_rows(b, counts, group)


def _mean(values: Tensor) -> Tensor:
    """The mean [B] -> scalar; 0 of no value."""
    return values.sum() / max(len(values), 1)


def _is_map(attention: object) -> TypeGuard[AttentionMap]:
    # Not by isinstance, which finds no property in a compiled region.
    return hasattr(attention, "vectors")


def _deviation(overlap: Tensor, normalize: str, unbiased: bool) -> Tensor:
    """Variance of the diagonal [B, B] -> scalar; 0 with a gradient path for B = 1 instead of 0 / 0."""
    diagonal = (_unit_rows(overlap) if normalize == "rows" else overlap).diagonal()  # [B]
    deviations = (diagonal - diagonal.mean()).square()
    return deviations.sum() / max(len(diagonal) - unbiased, 1)


def _cosine(overlap: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each sample's two maps, from their inner products [B, B] -> [B]; 0 where a map is all zeros."""
    norms = [attention_overlap(own, own).diagonal() for own in (a, b)]
    one, other = (norm.masked_fill(norm == 0, 1).sqrt() for norm in norms)
    return overlap.diagonal() / one / other


def _relations(maps: Tensor) -> Tensor:
    """Row-normalized similarities among the samples [B, ...] -> [B, B]."""
    return _unit_rows(attention_overlap(maps.flatten(1), maps.flatten(1)))


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm [B, F] -> [B, F]; rows of zeros stay, with a finite gradient."""
    rows = widened(rows)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # [B, 1]
    return rows / norm.masked_fill(norm == 0, 1)
