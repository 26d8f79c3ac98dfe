"""What the files of a cohort say about their slides, without reading the features."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from ..bags import Bag, TokenSet
from ..data.cohort import Sample, StoredBag


class SlideFacts(NamedTuple):
    """What is known of one bag.

    Attributes:
        slides: number of slides.
        tokens: number of patches that are read.
        width: features per patch.
        placed: flag, True if patches have coordinates.
        recognized: writer, encoder, magnification and size of the patches, as far as they are known.
        stored: number of patches in the files.
        augmented: number of these that are augmented copies of others.
    """

    slides: int
    tokens: int
    width: int
    placed: bool
    recognized: str
    stored: int
    augmented: int = 0


def slide_facts(bag: Bag | StoredBag) -> SlideFacts:
    """What is known of a bag: the one place that asks the files.

    Args:
        bag: bag in memory or in files.

    Returns:
        Its facts.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is unreadable.
    """
    if isinstance(bag, Bag):
        tokens, width = int(bag.mask.sum()), bag.patches.shape[2]
        recognized = "in memory" if tokens else "no tiles"
        return SlideFacts(int(tokens > 0), tokens, width, not isinstance(bag.grid, TokenSet), recognized, tokens)
    source = bag.source()
    tokens = source.tokens - (source.augmented if bag.drop_augmented else 0)
    tokens = tokens if bag.max_tokens is None else min(tokens, bag.max_tokens)
    return SlideFacts(
        len(source.files), tokens, source.width, source.placed, source.summary, source.tokens, source.augmented
    )


def tell_partly_read(samples: Sequence[Sample]) -> None:
    """Say once of how many bags tiles are left out.

    Args:
        samples: samples of a cohort, or new ones.
    """
    stored = [bag for sample in samples for bag in sample.bags.values() if isinstance(bag, StoredBag)]
    parts = [bag for bag in stored if bag.is_partly_read()]
    if parts:
        most = " or ".join(f"{count:,}" for count in sorted({bag.max_tokens for bag in parts if bag.max_tokens}))
        warnings.warn(
            f"{len(parts)} of {len(stored)} bags of slides are read in part, because they hold more tiles than "
            f"max_tokens, {most}; the tiles are spread evenly over the tissue",
            stacklevel=3,
        )


def span(numbers: Sequence[int]) -> str:
    """The range of numbers and their median.

    Args:
        numbers: numbers, at least one.

    Returns:
        The range in words.

    Example:
        >>> span([3, 1000, 20])
        '3 to 1,000 (median 20)'
    """
    ordered = sorted(numbers)
    if ordered[0] == ordered[-1]:
        return f"{ordered[0]:,}"
    return f"{ordered[0]:,} to {ordered[-1]:,} (median {ordered[len(ordered) // 2]:,})"
