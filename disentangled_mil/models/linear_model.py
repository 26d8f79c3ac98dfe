"""The linear model: logits that are linear in statistics of a bag's patches, and in genes where there are any.

The statistics are the mean of every feature and its standard deviation, which tells how much the tissue varies.

With a few hundred patients, this model is often as good as a network on the same features. Teacher and student may
average their predictions with its own.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .._checks import check_count, check_counts, check_floating, check_names, check_shape, check_subspaces, check_type
from ..bags import Bag

T = TypeVar("T")


class LinearModel(nn.Module):
    r"""Named vectors -> logits that are linear in them.

    .. math:: b + \sum_v W_v (x_v - c_v)

    All weights and centers start at 0. :func:`~disentangled_mil.train.linear.fit_linear` fits them by ridge regression;
    gradient descent may fit weights and bias as well. A NaN in a vector is missing and counts as its center.

    Args:
        sizes: width of every named vector, e.g. ``{"mean_20x": 1024, "genes_tumor": 59}``.
        outputs: number of logits K.

    Shape:
        {name: [B, P]} -> logits [B, K].

    Raises:
        TypeError: a width is not an integer, or a vector is not floating-point.
        ValueError: names or shapes disagree, or a width is less than 1.

    Source:
        Not in the paper; multinomial and ridge regression.

    Example:
        >>> import torch
        >>> from disentangled_mil import LinearModel
        >>> model = LinearModel({"mean_20x": 8}, 4)
        >>> model({"mean_20x": torch.randn(2, 8)}).shape
        torch.Size([2, 4])
    """

    def __init__(self, sizes: Mapping[str, int], outputs: int) -> None:
        super().__init__()
        check_subspaces(sizes, "sizes")
        check_counts("sizes", tuple(sizes.values()))
        check_count("outputs", outputs)
        self.sizes, self.outputs = dict(sizes), outputs
        self.weights = nn.ParameterDict({name: torch.zeros(outputs, size) for name, size in sizes.items()})
        self.bias = nn.Parameter(torch.zeros(outputs))
        for name, size in sizes.items():
            self.register_buffer(f"center_{name}", torch.zeros(size))

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Predict from vectors."""
        check_names("vectors", vectors, self.sizes)
        logits: Tensor = self.bias
        sizes: dict[str, int] = {}
        for name, weight in self.weights.items():
            size = {**sizes, "P": self.sizes[name]}
            sizes = {"B": check_shape(f"vectors[{name!r}]", vectors[name], "B P", size)["B"]}
            check_floating(f"vectors[{name!r}]", vectors[name])
            apart = vectors[name].to(weight.dtype) - self.get_buffer(f"center_{name}")
            logits = logits + torch.where(apart.isnan(), 0, apart) @ weight.T
        return logits

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return f"{self.sizes}, {self.outputs}"


class PatchStatistics(NamedTuple):
    """The result of :func:`patch_statistics`.

    Attributes:
        mean: mean patch [B, C]; NaN for an empty bag.
        deviation: standard deviation of every feature over the patches [B, C]; NaN for a bag of fewer than two patches.
    """

    mean: Tensor
    deviation: Tensor


def patch_statistics(bag: Bag) -> PatchStatistics:
    """Mean and standard deviation of the patches of every bag.

    The sum of squares is divided by the number of patches less one, so the variance is unbiased at any number.

    Args:
        bag: B bags.

    Returns:
        Both, in at least float32.

    Source:
        Not in the paper; statistics pooling of Snyder et al., Interspeech 2017.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.models import patch_statistics
        >>> patch_statistics(Bag(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])))
        PatchStatistics(mean=tensor([[2., 3.]]), deviation=tensor([[1.4142, 1.4142]]))
    """
    check_type("bag", bag, Bag, "a Bag")
    dtype = torch.promote_types(bag.patches.dtype, torch.float32)
    real = bag.mask[..., None]
    count = real.sum(1)
    mean = torch.where(real, bag.patches, 0).sum(1, dtype=dtype) / count
    apart = (bag.patches - mean[:, None]).masked_fill_(~real, 0)
    deviation = torch.linalg.vector_norm(apart, dim=1) / (count - 1).clamp(min=1).to(dtype).sqrt()
    # A constant feature has the deviation 0, not the rounding error of its mean.
    deviation = torch.where(deviation > 8 * torch.finfo(dtype).eps * mean.abs(), deviation, 0)
    return PatchStatistics(mean, torch.where(count > 1, deviation, torch.nan))


def named_vectors(patches: Mapping[str, tuple[T, T]], genes: Mapping[str, T] | None = None) -> dict[str, T]:
    """The vectors of the linear model in a student, or with genes in a teacher.

    Args:
        patches: statistics of the patches, or the widths of both, by magnification.
        genes: expression, or the number of genes, by subspace.

    Returns:
        ``mean_NAME`` and ``deviation_NAME`` for every magnification, and ``genes_NAME`` for every subspace.
    """
    named: dict[str, T] = {}
    for name, (mean, deviation) in patches.items():
        named |= {f"mean_{name}": mean, f"deviation_{name}": deviation}
    return named | {f"genes_{name}": value for name, value in (genes or {}).items()}
