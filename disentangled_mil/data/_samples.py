"""Samples: a bag per magnification, in memory or in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .._checks import as_path, check_choice, check_count, check_flag, check_mapping, check_positive, check_type
from ..bags import Bag
from .slide_reading import TRANSFORMS, transformed
from .slides import SlideSource, check_places, read_bag, reads_part, slide_source


@dataclass(frozen=True)
class StoredBag:
    """A bag that stays in its files until it is needed.

    Args:
        paths: files; one slide keeps its coordinates, several are one bag without coordinates.
        transform: transform of the features: ``"none"``, or ``"log"`` for probabilities: log(x + 1e-6) in float32.
        drop_augmented: flag that leaves out augmented patches.
        step: side of a grid cell in the unit of the coordinates; by default from the file, see
            :func:`~.slides.read_bag`.
        as_set: flag that leaves out the coordinates of a single slide, too.
        max_tokens: largest number of tiles to keep, see :func:`~.slides.read_bag`.
        features: name of the features, see :func:`~.slides.read_bag`.
        coords: name of the coordinates, see :func:`~.slides.read_bag`.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: there is no path, the transform is unknown, the step is not positive and finite, or ``max_tokens``
            is less than 1.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.cohort import StoredBag
        >>> from disentangled_mil.data.slides import write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(5, 8))
        >>> StoredBag((path,)).load().patches.shape
        torch.Size([1, 5, 8])
    """

    paths: tuple[str | Path, ...]
    transform: str = "none"
    drop_augmented: bool = False
    step: float | None = None
    as_set: bool = False
    max_tokens: int | None = None
    features: str | None = None
    coords: str | None = None

    def __post_init__(self) -> None:
        check_type("paths", self.paths, (list, tuple), "a tuple of paths")
        for path in self.paths:
            as_path("paths", path)
        if not self.paths:
            raise ValueError("paths must hold at least one file, got none")
        if self.step is not None:
            check_positive("step", self.step)
        check_flag("drop_augmented", self.drop_augmented)
        check_flag("as_set", self.as_set)
        check_choice("transform", self.transform, TRANSFORMS)
        if self.max_tokens is not None:
            check_count("max_tokens", self.max_tokens)

    def source(self) -> SlideSource:
        """What the files say about themselves, from their metadata alone."""
        return slide_source(*self.paths, features=self.features, coords=self.coords, as_set=self.as_set)

    def check_places(self) -> None:
        """Check the coordinates where they are kept, without reading the features.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: :func:`~.slides.read_bag` refuses the coordinates.
        """
        if len(self.paths) == 1 and not self.as_set:
            check_places(self.paths[0], step=self.step, features=self.features, coords=self.coords)

    def is_partly_read(self) -> bool:
        """Whether tiles are left out, because there are more than ``max_tokens``; features are not read."""
        return reads_part(
            self.paths,
            self.max_tokens,
            drop_augmented=self.drop_augmented,
            features=self.features,
            coords=self.coords,
        )

    def load(self) -> Bag:
        """Read the bag, without a warning where ``is_partly_read()``, because a cohort has many of them.

        Returns:
            A bag with B = 1.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: :func:`~.slides.read_bag` refuses a file, or a feature is negative
                under ``transform="log"``.
        """
        bag = read_bag(
            *self.paths,
            features=self.features,
            coords=self.coords,
            step=self.step,
            as_set=self.as_set,
            drop_augmented=self.drop_augmented,
            max_tokens=self.max_tokens,
            quiet=True,
        ).bag
        if self.transform == "none":
            return bag
        if (bag.patches < 0).any():
            files = ", ".join(map(str, self.paths))
            raise ValueError(f"{files}: transform 'log' needs features >= 0, got {bag.patches.min():g}")
        return Bag(transformed(bag.patches, self.transform), bag.grid)


@dataclass(frozen=True)
class Sample:
    """One input of a model: a bag per magnification, of one slide or of all slides of a patient.

    Args:
        name: name of the slide or of the patient.
        patient: patient of the sample; metrics and splits are per patient.
        bags: bag of every magnification, in memory or in files.

    Raises:
        TypeError: a name is no text, or a bag no bag.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.data.cohort import Sample
        >>> sample = Sample("slide 1", "patient 1", {"20x": Bag.from_slide(torch.ones(5, 8))})
        >>> sample.load()["20x"].patches.shape
        torch.Size([1, 5, 8])
    """

    name: str
    patient: str
    bags: Mapping[str, Bag | StoredBag]

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "text")
        check_type("patient", self.patient, str, "text")
        check_mapping("bags", self.bags)
        for name, bag in self.bags.items():
            check_type(f"bags[{name!r}]", bag, (Bag, StoredBag), "a Bag or a StoredBag")

    def load(self) -> dict[str, Bag]:
        """The bag of every magnification; stored bags are read."""
        return {magnification: bag if isinstance(bag, Bag) else bag.load() for magnification, bag in self.bags.items()}
