"""Bags in memory: those that fit, and of the others only a few numbers."""

from collections.abc import Callable, Sequence
from operator import methodcaller

from torch import Tensor
from tqdm import tqdm

from ..bags import Bag, TokenSet, thin
from ..data.cohort import Sample
from ..models import mean_patches

_ROOM_FOR_PARTS = 1 << 30  # bytes; thinned bags are small


class BagCache:
    """Bags of stored samples, kept in memory up to a limit.

    Args:
        limit: bytes of bags to keep, features and grids; bags beyond it are read again each time.
        read: function that reads the bags of a sample.
    """

    def __init__(self, limit: int = 4 << 30, read: Callable[[Sample], dict[str, Bag]] = methodcaller("load")) -> None:
        self._read = read
        # Two cohorts may use one name, so the key is the identity. The sample is kept so that no other one takes it.
        self._kept: dict[int, tuple[Sample, dict[str, Bag]]] = {}
        self._means: dict[int, tuple[Sample, dict[str, Tensor]]] = {}
        self._tokens: dict[int, tuple[Sample, int]] = {}
        self._room = limit

    def load(self, sample: Sample) -> dict[str, Bag]:
        """The bag of every magnification."""
        if id(sample) in self._kept:
            return self._kept[id(sample)][1]
        bags = self._read(sample)
        self._tokens[id(sample)] = sample, sum(bag.patches.shape[1] for bag in bags.values())
        size = sum(bag.nbytes for bag in bags.values())
        if size <= self._room:
            self._kept[id(sample)] = sample, bags
            self._room -= size
        return bags

    def tokens(self, sample: Sample) -> int:
        """The number of tokens over all magnifications, which is kept."""
        if id(sample) not in self._tokens:
            self.load(sample)
        return self._tokens[id(sample)][1]

    def mean_patches(self, sample: Sample) -> dict[str, Tensor]:
        """The mean patch of every magnification [C], which is kept."""
        if id(sample) not in self._means:
            self._means[id(sample)] = sample, {name: mean_patches(bag)[0] for name, bag in self.load(sample).items()}
        return self._means[id(sample)][1]

    def thinned(self, most: int) -> "BagCache":
        """A cache of the same bags with at most ``most`` tokens each, spread evenly over the tissue.

        Args:
            most: largest number of tokens of a bag.

        Returns:
            The cache.
        """

        def read(sample: Sample) -> dict[str, Bag]:
            return {name: thin(bag, most) for name, bag in self.load(sample).items()}

        return BagCache(_ROOM_FOR_PARTS, read)

    def check(self, samples: Sequence[Sample], *, quiet: bool = False) -> list[int]:
        """Read every sample once, so that a faulty file is refused before any training.

        Args:
            samples: samples to read.
            quiet: whether no progress bar is shown.

        Returns:
            The number of patches of every sample, over all magnifications.

        Raises:
            ValueError: a file is refused, or some bags of a magnification have coordinates and others have none.
        """
        counts: list[int] = []
        first: dict[str, tuple[str, bool]] = {}
        for sample in tqdm(samples, desc="reading slides", unit="sample", disable=quiet):
            bags = self.load(sample)
            counts.append(self.tokens(sample))
            for name, bag in bags.items():
                is_set = isinstance(bag.grid, TokenSet)
                known, known_is_set = first.setdefault(name, (sample.name, is_set))
                if is_set != known_is_set:
                    without, placed = (sample.name, known) if is_set else (known, sample.name)
                    raise ValueError(
                        f"{name} bags must all have coordinates or all have none, got {without!r} without and "
                        f"{placed!r} with them"
                    )
        return counts
