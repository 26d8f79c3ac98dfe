"""Labeled slides in folders, as a PyTorch data set."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_count, check_mapping, check_type, first_of
from ..bags import Bag, collate_samples
from ._samples import StoredBag
from .slide_reading import SlideReading, TileFacts
from .slides import read_bag, slide_files, slide_name
from .tile_ratios import usual_ratios


class SlideDataset(Dataset[tuple[dict[str, Bag], int]]):
    """Slides with class labels, each at every magnification; they stay in their files until they are needed.

    An item is the bags of a slide by magnification, and the index of its class. :meth:`collate` makes a batch of items.

    Args:
        folders: folder of slides for every magnification, see :func:`~disentangled_mil.data.slide_files`.
        labels: label of every slide by its name, as a mapping or a pandas series: words, numbers or any other hashable
            values. Slides of the folders that it does not name are left out.
        classes: labels in the order of their indices; by default the sorted ones, or those in order of appearance if
            they cannot be sorted.
        max_tokens: largest number of tiles to keep, see :func:`~disentangled_mil.data.read_bag`.
        features: name of the features in the files, see :func:`~disentangled_mil.data.read_bag`.
        coords: name of the coordinates in the files, see :func:`~disentangled_mil.data.read_bag`.

    Raises:
        FileNotFoundError: a folder, or a slide of the labels in a folder, is missing.
        TypeError: an argument has another type.
        ValueError: there is no folder or no label, a label is missing or is no class, or two slides have one name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from disentangled_mil.data import SlideDataset, write_bag
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a", "b"):
        ...     write_bag(folder / f"{name}.h5", torch.ones(3, 8))
        >>> dataset = SlideDataset({"20x": folder}, {"a.svs": 3, "b.svs": 2})
        >>> bags, target = dataset.collate([dataset[0], dataset[1]])
        >>> bags["20x"].patches.shape, target, dataset.classes
        (torch.Size([2, 3, 8]), tensor([1, 0]), (2, 3))
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        labels: "Mapping[Any, Hashable] | pd.Series[Any]",
        classes: Iterable[Hashable] | None = None,
        *,
        max_tokens: int | None = None,
        features: str | None = None,
        coords: str | None = None,
    ) -> None:
        check_mapping("folders", folders)
        if isinstance(labels, pd.DataFrame):
            raise TypeError("labels must be one column of a table, such as table['label'], got a DataFrame")
        check_type("labels", labels, (Mapping, pd.Series), "a mapping or a series from names of slides")
        if max_tokens is not None:
            check_count("max_tokens", max_tokens)
        if not len(folders) or not len(labels):
            raise ValueError(f"folders and labels must not be empty, got {len(folders)} folders, {len(labels)} labels")
        names, values = zip(*labels.items(), strict=True)
        self.magnifications = tuple(folders)
        self.max_tokens = max_tokens
        self._names_in_files: dict[str, Any] = {"features": features, "coords": coords}
        for key, name in self._names_in_files.items():
            check_type(key, name, (str, NoneType), "a name or None")
        self.names = tuple(slide_name(str(name)) for name in names)
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"labels must name every slide once, got {twice!r} twice")
        for name, label in zip(self.names, values, strict=True):
            check_type(f"label of {name!r}", label, Hashable, "hashable")
            if pd.api.types.is_scalar(label) and pd.isna(label):
                raise ValueError(f"labels must have a value for every slide, got {label!r} for {name!r}")
        self.classes = tuple(_ordered(values) if classes is None else classes)
        index = {label: number for number, label in enumerate(self.classes)}
        if unknown := [label for label in values if label not in index]:
            raise ValueError(f"labels must be among {list(self.classes)}, got {unknown[0]!r}")
        self.targets = tuple(index[label] for label in values)
        self._files: dict[str, dict[str, Path]] = {}
        for magnification, folder in folders.items():
            self._files[magnification] = files = slide_files(folder)
            if lacking := [name for name in self.names if name not in files]:
                raise FileNotFoundError(f"{folder}: must hold every slide, but lacks {first_of(lacking)}")

    @property
    def width(self) -> int:
        """Numbers per patch of the first slide."""
        return self._first_bags()[self.magnifications[0]].source().width

    @property
    def reading(self) -> SlideReading:
        """How the slides are read, as the first one shows it; it goes into a checkpoint."""
        bags = self._first_bags()
        sources = {name: bag.source() for name, bag in bags.items()}
        ratios = usual_ratios([bags])
        names = {key: dict.fromkeys(sources, name) for key, name in self._names_in_files.items() if name is not None}
        return SlideReading(
            sets=tuple(name for name, source in sources.items() if not source.placed),
            max_tokens={} if self.max_tokens is None else dict.fromkeys(sources, self.max_tokens),
            features=names.get("features", {}),
            coords=names.get("coords", {}),
            tiles={name: TileFacts.of(source, ratios.get(name)) for name, source in sources.items()},
        )

    def _first_bags(self) -> dict[str, StoredBag]:
        """The first slide at every magnification."""
        return {name: StoredBag((files[self.names[0]],), **self._names_in_files) for name, files in self._files.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[dict[str, Bag], int]:
        files = {name: of_slides[self.names[index]] for name, of_slides in self._files.items()}
        options = {**self._names_in_files, "max_tokens": self.max_tokens}
        bags = {name: read_bag(path, **options).bag for name, path in files.items()}
        return bags, self.targets[index]

    @staticmethod
    def collate(items: Sequence[tuple[Mapping[str, Bag], int]]) -> tuple[dict[str, Bag], Tensor]:
        """Put items into a batch: ``collate_fn`` of a :class:`torch.utils.data.DataLoader`.

        Args:
            items: items of a data set.

        Shape:
            B items.

        Returns:
            The bags of every magnification, and the class indices [B].

        Raises:
            TypeError: ``items`` is no sequence of items.
        """
        if not isinstance(items, Sequence) or not all(isinstance(item, tuple) and len(item) == 2 for item in items):
            raise TypeError(f"items must be a sequence of items (bags, target) of a data set, got {_kinds(items)}")
        return collate_samples(bags for bags, _ in items), torch.tensor([target for _, target in items])


def _kinds(items: object) -> str:
    """The types of what was given for items, in words; one item is a pair itself."""
    if not isinstance(items, Sequence):
        return type(items).__name__
    return f"a {type(items).__name__} of {', '.join(type(item).__name__ for item in items)}"


def _ordered(labels: Iterable[Hashable]) -> list[Any]:
    """The distinct labels, sorted if they can be."""
    distinct: list[Any] = list(dict.fromkeys(labels))
    try:
        return sorted(distinct)
    except TypeError:
        return distinct
