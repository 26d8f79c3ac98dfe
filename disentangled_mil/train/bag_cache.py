"""Bags in memory: those that fit, and of the others only a few numbers."""

from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import NamedTuple

from tqdm import tqdm

from ..bags import Bag, Grid, TokenSet, thin
from ..data.cohort import Sample
from ..models import PatchStatistics, patch_statistics
from .processes import of_each, processes, rank
from .slide_facts import tell_partly_read

_ROOM_FOR_PARTS = 1 << 30  # bytes; thinned bags are small


class BagFacts(NamedTuple):
    """A few numbers of the bags of one sample.

    Attributes:
        tokens: number of tokens, by magnification.
        statistics: mean and standard deviation of the patches of every magnification, [C] each.
        rectangles: shape of the rectangle that a bag fills, by magnification; None where it fills none.
        sets: magnifications whose bag has no coordinates.
    """

    tokens: Mapping[str, int]
    statistics: Mapping[str, PatchStatistics]
    rectangles: Mapping[str, tuple[tuple[int, int], ...] | None]
    sets: tuple[str, ...]


class BagCache:
    """Bags of stored samples, kept in memory up to a limit.

    Args:
        limit: bytes of bags to keep, features and grids; bags beyond it are read again each time.
        read: function that reads the bags of a sample.
    """

    def __init__(self, limit: int = 4 << 30, read: Callable[[Sample], dict[str, Bag]] = methodcaller("load")) -> None:
        self._load = read
        # Two cohorts may use one name, so the key is the identity. The sample is kept so that no other one takes it.
        self._kept: dict[int, tuple[Sample, dict[str, Bag]]] = {}
        self._facts: dict[int, tuple[Sample, BagFacts]] = {}
        self._room = limit

    def load(self, sample: Sample) -> dict[str, Bag]:
        """The bag of every magnification."""
        if id(sample) in self._kept:
            return self._kept[id(sample)][1]
        bags = self._load(sample)
        if id(sample) not in self._facts:
            self._facts[id(sample)] = sample, _facts(bags)
        size = sum(bag.nbytes for bag in bags.values())
        if size <= self._room:
            self._kept[id(sample)] = sample, bags
            self._room -= size
        return bags

    def facts(self, sample: Sample) -> BagFacts:
        """A few numbers of the bags, which are kept."""
        if id(sample) not in self._facts:
            self.load(sample)
        return self._facts[id(sample)][1]

    def larger(self, samples: Sequence[Sample], max_tokens: int) -> int:
        """The number of bags with more than ``max_tokens`` tokens, over all magnifications."""
        return sum(count > max_tokens for sample in samples for count in self.facts(sample).tokens.values())

    def thinned(self, max_tokens: int) -> "BagCache":
        """A cache of the same bags with at most ``max_tokens`` tokens each, spread evenly over the tissue.

        Args:
            max_tokens: largest number of tokens of a bag.

        Returns:
            The cache.
        """

        def read(sample: Sample) -> dict[str, Bag]:
            return {name: thin(bag, max_tokens) for name, bag in self.load(sample).items()}

        return BagCache(_ROOM_FOR_PARTS, read)

    def read(self, samples: Sequence[Sample], *, quiet: bool = False) -> None:
        """Read every sample once; each process reads its share.

        Args:
            samples: samples to read.
            quiet: flag that hides the progress bar.
        """
        own = samples[rank() :: processes()]

        def facts() -> list[BagFacts]:
            # The bar ends its line before an error is printed.
            with tqdm(own, desc="reading slides", unit="sample", disable=quiet) as bar:
                return [self.facts(sample) for sample in bar]

        parts = of_each(facts)
        for number, sample in enumerate(samples):
            self._facts[id(sample)] = sample, parts[number % len(parts)][number // len(parts)]

    def check(self, samples: Sequence[Sample], *, quiet: bool = False) -> list[int]:
        """Read every sample once, so that a faulty file is refused before any training.

        Args:
            samples: samples to read.
            quiet: flag that hides the progress bar.

        Returns:
            The number of patches of every sample, over all magnifications.

        Raises:
            ValueError: a file is refused, or some bags of a magnification have coordinates and others have none.
        """
        self.read(samples, quiet=quiet)
        first: dict[str, tuple[str, bool]] = {}
        if rank() == 0:
            tell_partly_read(samples)
        for sample in samples:
            facts = self.facts(sample)
            for name in facts.statistics:
                is_set = name in facts.sets
                known, known_is_set = first.setdefault(name, (sample.name, is_set))
                if is_set != known_is_set:
                    without, placed = (sample.name, known) if is_set else (known, sample.name)
                    raise ValueError(
                        f"{name} bags must all have coordinates or all have none, got {without!r} without and "
                        f"{placed!r} with them"
                    )
        return [sum(self.facts(sample).tokens.values()) for sample in samples]


def _facts(bags: Mapping[str, Bag]) -> BagFacts:
    return BagFacts(
        tokens={name: bag.patches.shape[1] for name, bag in bags.items()},
        statistics={
            name: PatchStatistics(*(values[0] for values in patch_statistics(bag))) for name, bag in bags.items()
        },
        rectangles={
            name: bag.grid.shapes if isinstance(bag.grid, Grid) and bag.grid.full else None
            for name, bag in bags.items()
        },
        sets=tuple(name for name, bag in bags.items() if isinstance(bag.grid, TokenSet)),
    )
