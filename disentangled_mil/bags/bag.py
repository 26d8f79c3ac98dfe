"""Slides as layers take them: patch features and their grid, one or several as a batch."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_shape
from ._pytree import register_pytree
from .grid import Grid


@dataclass(frozen=True, eq=False)
class Bag:
    """A batch of bags: patch features and the grid on which they lie. A single slide is a batch of one.

    Args:
        patches: patch features, in any floating-point type (stored features are often float16).
        grid: grid of the patches, which also says which of them are real.

    Shape:
        ``patches`` [B, N, C].

    Raises:
        ValueError: patches and grid disagree.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, collate_bags
        >>> slides = [Bag.from_slide(torch.randn(n, 8)) for n in (5, 9)]
        >>> batch = collate_bags(slides)
        >>> batch.patches.shape, batch.mask.sum(1).tolist()
        (torch.Size([2, 9, 8]), [5, 9])
    """

    patches: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        batch, tokens = self.grid.mask.shape
        check_shape("patches", self.patches, "B N C", {"B": batch, "N": tokens})

    @classmethod
    def from_slide(cls, features: Tensor, coords: Tensor | None = None, *, step: float | None = None) -> "Bag":
        """Make a batch of one slide, laid out by its coordinates, or on a square without coordinates.

        Args:
            features: patch features.
            coords: (x, y) of every patch.
            step: side of one cell in the unit of ``coords``; see :meth:`Grid.from_coords`.

        Shape:
            ``features`` [N, C], ``coords`` [N, 2].

        Returns:
            A batch of one bag.

        Raises:
            ValueError: the slide is empty or shapes disagree.
        """
        count = check_shape("features", features, "N C")["N"]
        if count == 0:
            raise ValueError("features must hold at least one patch, got none")
        if coords is None:
            return cls(features[None], Grid.square(count, device=features.device))
        check_shape("coords", coords, "N 2", {"N": count})
        return cls(features[None], Grid.from_coords(coords, step=step).to(features.device))

    @property
    def mask(self) -> Tensor:
        """True where a token is real [B, N]."""
        return self.grid.mask

    def __len__(self) -> int:
        return self.patches.shape[0]

    def to(self, device: torch.device | str) -> "Bag":
        """The bags on another device."""
        return Bag(self.patches.to(device), self.grid.to(device))


def collate_bags(bags: Iterable[Bag]) -> Bag:
    """Put bags of unequal length into one batch, padded to the longest.

    Args:
        bags: bags of one feature width, at least one.

    Returns:
        The batch, in order. Padding is zero and masked out, and no layer reads it.

    Raises:
        TypeError: a value is no bag.
        ValueError: there is no bag, or feature widths differ.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, collate_bags
        >>> collate_bags([Bag.from_slide(torch.ones(2, 4)), Bag.from_slide(torch.ones(3, 4))]).mask.tolist()
        [[True, True, False], [True, True, True]]
    """
    bags = list(bags)
    if not bags:
        raise ValueError("bags must hold at least one bag, got none")
    for bag in bags:
        if not isinstance(bag, Bag):
            raise TypeError(f"bags must hold values of type Bag, got {type(bag).__name__}")
    widths = sorted({bag.patches.shape[2] for bag in bags})
    if len(widths) > 1:
        raise ValueError(f"bags must have one feature width, got {widths}")
    longest = max(bag.patches.shape[1] for bag in bags)

    def pad(tensors: list[Tensor]) -> Tensor:
        padded = [torch.nn.functional.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in tensors]
        return torch.cat(padded)

    cells = pad([bag.grid.cells for bag in bags])
    mask = pad([bag.grid.mask for bag in bags])
    shapes = tuple(shape for bag in bags for shape in bag.grid.shapes)
    return Bag(pad([bag.patches for bag in bags]), Grid(cells, mask, shapes))


register_pytree(Bag, ("patches", "grid"))
