"""Features of many slides at several magnifications, one HDF5 file each; finished files are kept."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from .._errors import FileError
from .._exit_status import work_begins
from .._files import remove_leftovers
from ..data.slides import IMAGE_SUFFIXES, slide_name, write_bag
from .extractor import Extractor
from .slide_image import SlideImage, check_mpp
from .tiles import TILE, check_magnification

_Facts = Mapping[str, float | str]


class Extraction(NamedTuple):
    """What became of the slides.

    Attributes:
        written: files that were written.
        kept: files that were there before.
        failed: reasons why slides could not be read, by the path of the slide.
    """

    written: list[Path]
    kept: list[Path]
    failed: dict[Path, str]


def extract_slides(
    slides: Sequence[str | Path],
    magnifications: Sequence[float],
    extractor: Extractor,
    out: str | Path,
    *,
    mpp: float | None = None,
    quiet: bool = False,
) -> Extraction:
    """Write ``OUT/20x/SLIDE.h5`` in the layout of TRIDENT for every slide, and so for every magnification.

    A file that is there is kept, if encoder, magnification and options are those of now. So the same command continues
    after an interruption. A slide that cannot be read is named in a warning, and the others go on. A slide without
    tissue becomes a file without tiles, with a warning.

    Args:
        slides: files of slides, and folders, see :func:`slide_images`.
        magnifications: objective magnifications of the tiles.
        extractor: encoder and options.
        out: folder to write to; it is made.
        mpp: micrometers per pixel of level 0 of all slides, instead of those of their files.
        quiet: flag that hides the progress.

    Returns:
        The files, and the slides that could not be read.

    Raises:
        FileNotFoundError: a slide or folder is missing.
        ModuleNotFoundError: the extra is not installed.
        TypeError: the encoder returns no floating-point tensor.
        ValueError: there is no slide, two slides have one name, a magnification is out of range or given twice, the
            encoder returns another shape, or ``out`` holds files of another encoder, of other options or of another
            program.
    """
    images = slide_images(slides)
    wanted = tuple(magnifications)
    for magnification in wanted:
        check_magnification(magnification)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"magnifications must hold at least one magnification, each once, got {wanted}")
    check_mpp(mpp)
    options: dict[str, float | str] = {
        "encoder": extractor.encoder.name, "width": extractor.width(), "dtype": str(extractor.dtype).split(".")[-1],
        "min_tissue": extractor.min_tissue,
    }  # fmt: skip
    if Path(out).is_file():
        raise NotADirectoryError(f"{out}: must be a folder, to hold the features, got a file")
    folders = {magnification: Path(out) / f"{magnification:g}x" for magnification in wanted}
    for magnification, folder in folders.items():
        for slide in images:
            _is_finished(folder / f"{slide}.h5", {**options, "target_magnification": magnification})
    result = Extraction([], [], {})
    work_begins()
    for number, (slide, source) in enumerate(images.items(), start=1):
        try:
            with SlideImage(source, mpp=mpp) as image:
                for magnification, facts in _facts(image, slide, wanted, extractor.min_tissue).items():
                    path = folders[magnification] / f"{slide}.h5"
                    if _is_finished(path, facts):
                        result.kept.append(path)
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    title = f"slide {number}/{len(images)}, {magnification:g}x: {slide}"
                    _write(path, image, magnification, extractor, facts, None if quiet else title)
                    result.written.append(path)
        except ValueError as error:
            result.failed[source] = str(error)
            warnings.warn(f"{error}; the slide is left out", stacklevel=2)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the same command continues, and finished files are kept") from error
    return result


def _write(
    path: Path, image: SlideImage, magnification: float, extractor: Extractor, facts: _Facts, title: str | None
) -> None:
    """Extract one slide at one magnification; its progress is shown under a title."""
    with tqdm(desc=title, unit="tile", disable=title is None) as bar:

        def show(tiles: int, total: int) -> None:
            bar.total = total
            bar.update(tiles)

        features, coords, side = extractor(image, magnification, on_batch=show)
    if not len(coords):
        warnings.warn(f"{image.path}: shows no tissue at {magnification:g}x, so {path} has no tiles", stacklevel=3)
    remove_leftovers(path)
    name = extractor.encoder.name
    write_bag(path, features, coords, step=side, encoder=name, magnification=magnification, attributes=facts)


def slide_images(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The slide images among files and in folders, by the name of the slide.

    Args:
        paths: files and folders. All files of a folder with the ending of a slide image are taken, except ``.dcm``. A
            DICOM slide has many of them, and is given by any one.

    Returns:
        Paths in the order given, and those of a folder in the order of their names.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: there is no slide, or two slides have one name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil.extract import slide_images
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.svs", "b.ndpi", "notes.txt"):
        ...     (folder / name).touch()
        >>> list(slide_images([folder]))
        ['a', 'b']
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder of slides")
        for file in sorted(filter(_is_image, path.iterdir())) if path.is_dir() else [path]:
            slide = slide_name(file.name)
            if slide in found and found[slide] != file:
                raise ValueError(f"slides must have a name each, got {found[slide]} and {file}, both {slide!r}")
            found[slide] = file
    if not found:
        places = ", ".join(map(str, paths))
        raise ValueError(f"slides must hold a slide image ({', '.join(IMAGE_SUFFIXES)}), got none in {places}")
    return found


def _is_image(path: Path) -> bool:
    suffix = path.suffix.casefold()
    return path.is_file() and not path.name.startswith(".") and suffix in IMAGE_SUFFIXES and suffix != ".dcm"


def _facts(
    image: SlideImage, slide: str, magnifications: Sequence[float], min_tissue: float
) -> dict[float, dict[str, float | str]]:
    """The attributes of coordinates by magnification; TRIDENT writes all but the last."""
    return {
        magnification: {
            "patch_size": TILE,
            "patch_size_level0": image.tile_side(magnification),
            "level0_magnification": 10 / image.known_mpp,  # 10x is 1 micrometer per pixel
            "overlap": 0,
            "name": slide,
            "level0_width": image.size[0],
            "level0_height": image.size[1],
            "min_tissue": min_tissue,
        }
        for magnification in magnifications
    }


def _is_finished(path: Path, facts: _Facts) -> bool:
    """Whether a file is there; one that differs from what would be written is refused."""
    if not path.exists():
        return False
    remedy = "move it away, or choose another folder"
    try:
        with h5py.File(path) as file:
            features, coords = file["features"], file["coords"]
            found = {**coords.attrs, "encoder": features.attrs["encoder"], "dtype": str(features.dtype)}
            found["width"] = features.shape[1]
    except (OSError, KeyError, AttributeError, IndexError) as error:
        raise FileError(f"{path}: must be a file of features that this command wrote; {remedy}", path) from error
    for name, value in facts.items():
        if name not in found or not np.array_equal(found[name], value):
            raise FileError(f"{path}: must have the {name} {value}, got {found.get(name)}; {remedy}", path)
    return True
