"""The linear floor: logits that are linear in the mean patch of a bag, and in genes where there are any.

With a few hundred patients, this model is often as good as any network on the same features. The mean of both
predictions is close to the better of the two, whichever that is.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from .._checks import check_count, check_counts, check_floating, check_names, check_shape, check_subspaces
from ..bags import Bag

T = TypeVar("T")


class LinearModel(nn.Module):
    r"""Named vectors -> logits that are linear in them.

    .. math:: b + \sum_v W_v (x_v - c_v)

    All weights and centers start at 0. :func:`~disentangled_mil.train.linear.fit_linear` fits them by ridge regression;
    gradient descent may fit them as well. A value of a vector that is NaN is missing and counts as its center.

    Args:
        sizes: width of every named vector, e.g. ``{"patches_20x": 1024, "genes_tumor": 59}``.
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
        >>> model = LinearModel({"patches_20x": 8}, 4)
        >>> model({"patches_20x": torch.randn(2, 8)}).shape
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


def mean_patches(bag: Bag) -> Tensor:
    """The mean patch of every bag.

    Args:
        bag: B bags.

    Returns:
        [B, C] in at least float32; NaN for an empty bag.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.models import mean_patches
        >>> mean_patches(Bag(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])))
        tensor([[2., 3.]])
    """
    dtype = torch.promote_types(bag.patches.dtype, torch.float32)
    real = bag.mask[..., None]
    return torch.where(real, bag.patches, 0).sum(1, dtype=dtype) / real.sum(1)


def named_vectors(patches: Mapping[str, T], genes: Mapping[str, T] | None = None) -> dict[str, T]:
    """The vectors of the linear model in a student, or with genes in a teacher.

    Args:
        patches: mean patches, or their width, by magnification.
        genes: expression, or the number of genes, by subspace.

    Returns:
        ``patches_NAME`` for every magnification, and ``genes_NAME`` for every subspace.
    """
    named = {f"patches_{name}": value for name, value in patches.items()}
    return named | {f"genes_{name}": value for name, value in (genes or {}).items()}
