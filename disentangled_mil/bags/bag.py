"""Slides as layers take them: patch features, and their grid or none; one or several as a batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from .._checks import check_count, check_finite, check_flag, check_mapping, check_names, check_shape, check_type
from .._collection import BatchCollection
from .grid import Grid
from .token_set import TokenSet


@dataclass(frozen=True, eq=False)
class Bag(BatchCollection, parts=("patches", "grid")):
    """A batch of bags: patch features, and the grid on which they lie if they have coordinates.

    A single slide is a batch of one. Bags without coordinates are sets: no model's prediction depends on the order of
    their patches.

    Args:
        patches: patch features, in any floating-point type (stored features are often float16).
        grid: grid of the patches, which also says which of them are real, or a :class:`TokenSet`; by default a set
            without padding.

    Shape:
        ``patches`` [B, N, C].

    Raises:
        TypeError: ``grid`` is neither a grid nor a token set.
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
    grid: Grid | TokenSet = field(default=cast(TokenSet, None))

    def __post_init__(self) -> None:
        if self.grid is None:
            sizes = check_shape("patches", self.patches, "B N C")
            mask = torch.ones(sizes["B"], sizes["N"], dtype=torch.bool, device=self.patches.device)
            object.__setattr__(self, "grid", TokenSet(mask))
        kinds = "a Grid or a TokenSet (Bag.from_slide(features, coords) takes coordinates)"
        check_type("grid", self.grid, (Grid, TokenSet), kinds)
        batch, tokens = self.grid.mask.shape
        check_shape("patches", self.patches, "B N C", {"B": batch, "N": tokens})

    @classmethod
    def from_slide(cls, features: Tensor, coords: Tensor | None = None, *, step: float | None = None) -> "Bag":
        """Make a batch of one slide, laid out by its coordinates, or a set without coordinates.

        Args:
            features: patch features.
            coords: (x, y) of every patch, without padding; see :meth:`Grid.from_coords`.
            step: side of one cell in the unit of ``coords``.

        Shape:
            ``features`` [N, C], ``coords`` [N, 2].

        Returns:
            A batch of one bag.

        Raises:
            ValueError: the slide is empty, shapes disagree, or a feature on the CPU is not finite.
        """
        count = check_shape("features", features, "N C")["N"]
        if count == 0:
            raise ValueError("features must hold at least one patch, got none")
        check_finite("features", features)
        if coords is None:
            return cls(features[None])
        check_shape("coords", coords, "N 2", {"N": count})
        return cls(features[None], Grid.from_coords(coords, step=step).to(features.device))

    @classmethod
    def empty(cls, width: int, *, placed: bool = False) -> "Bag":
        """A batch of one bag without tokens, for a sample that lacks a magnification.

        Args:
            width: number of features, as in the other bags.
            placed: flag that says that the other bags have coordinates.

        Returns:
            A bag of one token that is masked out.

        Raises:
            TypeError: ``width`` is no integer, or ``placed`` is no bool.
            ValueError: ``width`` is less than 1.

        Example:
            >>> from disentangled_mil import Bag
            >>> Bag.empty(8).mask.tolist()
            [[False]]
        """
        check_count("width", width)
        check_flag("placed", placed)
        mask = torch.zeros(1, 1, dtype=torch.bool)
        grid = Grid(torch.zeros(1, 1, 2, dtype=torch.int64), mask, ((1, 1),)) if placed else TokenSet(mask)
        # Of the smallest type, so that it changes the type of no batch.
        return cls(torch.zeros(1, 1, width, dtype=torch.float16), grid)

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> "Bag":
        """The opposite of ``to_dict``, also after rows were taken or tensors were moved.

        Args:
            parts: tensor ``patches``, and the mapping ``grid`` of a :class:`Grid` or a :class:`TokenSet`.

        Returns:
            The bags. Those with coordinates read the sizes of their grids.

        Raises:
            TypeError: ``parts`` or its ``grid`` is no mapping.
            ValueError: a name is missing or unknown, or patches and grid disagree.

        Example:
            >>> import torch
            >>> from disentangled_mil import Bag
            >>> parts = Bag(torch.randn(4, 9, 8)).to_dict()
            >>> len(Bag.from_dict({"patches": parts["patches"][:2], "grid": {"mask": parts["grid"]["mask"][:2]}}))
            2
        """
        named = cls._named(parts)
        grid = named.get("grid")
        if grid is not None:
            check_type("grid", grid, Mapping, "a mapping from names to tensors")
            named["grid"] = (Grid if "cells" in set(grid.keys()) else TokenSet).from_dict(grid)
        return cls(**named)

    @property
    def mask(self) -> Tensor:
        """The mask of the tokens [B, N] (True = real token)."""
        return self.grid.mask

    def __len__(self) -> int:
        return self.patches.shape[0]


def collate_bags(bags: Iterable[Bag]) -> Bag:
    """Put bags of unequal length into one batch, padded to the longest.

    Args:
        bags: bags of one feature width, at least one; all with coordinates or all without.

    Returns:
        The batch, in order. Padding is zero and masked out, and no layer reads it.

    Raises:
        TypeError: a value is no bag.
        ValueError: there is no bag, feature widths differ, or only some of the bags have coordinates.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, collate_bags
        >>> collate_bags([Bag.from_slide(torch.ones(2, 4)), Bag.from_slide(torch.ones(3, 4))]).mask.tolist()
        [[True, True, False], [True, True, True]]
    """
    check_type("bags", bags, Iterable, "an iterable of bags")
    bags = list(bags)
    if not bags:
        raise ValueError("bags must hold at least one bag, got none")
    for bag in bags:
        if not isinstance(bag, Bag):
            raise TypeError(f"bags must hold values of type Bag, got {type(bag).__name__}")
    widths = sorted({bag.patches.shape[2] for bag in bags})
    if len(widths) > 1:
        raise ValueError(f"bags must have one feature width, got {widths}")
    sets = [isinstance(bag.grid, TokenSet) for bag in bags]
    if len(set(sets)) > 1:
        raise ValueError(
            f"bags must all have coordinates or all have none, got bags[{sets.index(False)}] with coordinates and "
            f"bags[{sets.index(True)}] without; Bag(bag.patches, TokenSet(bag.mask)) leaves a bag's coordinates out"
        )
    longest = max(bag.patches.shape[1] for bag in bags)

    def pad(tensors: list[Tensor]) -> Tensor:
        padded = [torch.nn.functional.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in tensors]
        return torch.cat(padded)

    patches, mask = pad([bag.patches for bag in bags]), pad([bag.mask for bag in bags])
    grids = [bag.grid for bag in bags if isinstance(bag.grid, Grid)]
    if not grids:
        return Bag(patches, TokenSet(mask))
    shapes = tuple(shape for grid in grids for shape in grid.shapes)
    return Bag(patches, Grid(pad([grid.cells for grid in grids]), mask, shapes))


def collate_samples(samples: Iterable[Mapping[str, Bag]]) -> dict[str, Bag]:
    """Put samples with several magnifications into one batch of each, as models take them.

    Args:
        samples: bag of every magnification, for every sample; at least one sample. A sample that lacks a magnification
            has :meth:`Bag.empty` there.

    Returns:
        The batch of every magnification.

    Raises:
        ValueError: there is no sample, samples differ in their magnifications, or :func:`collate_bags` refuses the
            bags.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import collate_samples
        >>> bag = Bag.from_slide(torch.ones(2, 4))
        >>> {name: len(batch) for name, batch in collate_samples([{"10x": bag, "20x": bag}] * 3).items()}
        {'10x': 3, '20x': 3}
    """
    check_type("samples", samples, Iterable, "an iterable of samples")
    several = list(samples)
    if not several:
        raise ValueError("samples must hold at least one sample, got none")
    for sample in several:
        check_mapping("samples", sample)
        check_names("samples", sample, tuple(several[0]))
    return {name: collate_bags([sample[name] for sample in several]) for name in several[0]}
