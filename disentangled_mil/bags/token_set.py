"""The tokens of bags without coordinates: a set has no places and no order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_mask, check_shape, check_size
from .._collection import BatchCollection
from ._counts import mask_of


@dataclass(frozen=True, eq=False)
class TokenSet(BatchCollection, parts=("mask",)):
    """A batch of bags without coordinates: which of their tokens are real.

    Layers take it wherever they take a :class:`Grid`. Then their results do not depend on the order of the tokens,
    except for rounding: results of a token move with the token, and results of a bag stay.

    Args:
        mask: mask of the tokens (True = real token).

    Shape:
        ``mask`` [B, N].

    Raises:
        TypeError: the mask is not bool.
        ValueError: the mask has another shape, or there is no bag or no token.

    Source:
        None; the paper lays tokens without coordinates out on a square, see :meth:`Grid.square`.

    Example:
        >>> from disentangled_mil import TokenSet
        >>> TokenSet.of([2, 3]).mask.tolist()
        [[True, True, False], [True, True, True]]
    """

    mask: Tensor

    def __post_init__(self) -> None:
        sizes = check_shape("mask", self.mask, "B N")
        check_mask("mask", self.mask, "B N", sizes)
        if sizes["B"] < 1 or sizes["N"] < 1:
            raise ValueError(
                "mask must hold at least one bag and one token per bag (masked out if the bag is empty), "
                f"got {list(self.mask.shape)}"
            )

    @classmethod
    def of(cls, tokens: int | Sequence[int], *, device: torch.device | str | None = None) -> "TokenSet":
        """Sets of given sizes; the real tokens of every bag come first.

        Args:
            tokens: number of tokens, or one number per bag.
            device: device of the mask.

        Returns:
            One bag for a number (layers use it for every bag of a batch), else one bag per entry.

        Raises:
            TypeError: a number is not an integer.
            ValueError: a number is not positive.
        """
        return cls(mask_of(tokens, device)[0])

    def expand(self, batch: int) -> "TokenSet":
        """The set for ``batch`` bags: itself, or one bag repeated.

        Args:
            batch: number of bags B.

        Returns:
            A set of B bags.

        Raises:
            ValueError: the set already has another number of bags.
        """
        check_size("batch", batch)
        if self.mask.shape[0] == batch:
            return self
        if len(self.mask) != 1:
            raise ValueError(f"set must have B = {batch} bags (or one for all), got {len(self.mask)}")
        return TokenSet(self.mask.expand(batch, -1))
