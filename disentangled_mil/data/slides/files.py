"""The slides of a folder."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..._errors import reads_file
from .source import SlideError

SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".pth", ".zarr")
IMAGE_SUFFIXES = (
    ".svs", ".ndpi", ".tif", ".tiff", ".mrxs", ".scn", ".czi", ".bif", ".vms", ".vmu", ".vsi", ".svslide", ".dcm",
)  # fmt: skip

_OTHER_SUFFIXES = (".npy", ".npz", ".pkl", ".pickle", ".mat", ".safetensors")  # of arrays that are not read
_NO_FEATURES = ("patches", "masks", "stitches")  # folders of CLAM and TRIDENT, beside the features

# Of files of whole slides and of features, which stand behind names in tables and in names of files.
_ENDINGS = re.compile(f"({'|'.join(map(re.escape, (*IMAGE_SUFFIXES, *SUFFIXES)))})+$", re.IGNORECASE)


@reads_file
def slide_files(folder: str | Path) -> dict[str, Path]:
    """The files of features in a folder, by the name of the slide, see :func:`slide_name`.

    Args:
        folder: folder that holds a file per slide: ``.h5``, ``.hdf5``, ``.h5ad``, ``.pt``, ``.pth`` or ``.zarr``, in
            upper or lower case.

    Returns:
        Paths in the order of the names. Names are in composed Unicode (NFC), because systems write accents in two ways.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no slide, but a folder of slides or arrays of another
            ending.
        PermissionError: the folder may not be listed.
        ValueError: two files have one name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from disentangled_mil.data.slides import slide_files, write_bag
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_bag(folder / "TCGA-1.DX1.h5", torch.ones(2, 4))
        >>> list(slide_files(folder))
        ['TCGA-1.DX1']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; correct the path, or extract the features first")
    try:
        names = sorted(os.listdir(folder))
    except PermissionError as error:
        raise PermissionError(f"{folder}: must be readable, got no permission to list its files") from error
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if not _is_slide(path):
            continue
        slide = slide_name(name)
        if slide in found:
            raise SlideError(f"{folder}: must hold one file per slide, got {found[slide].name} and {name}")
        found[slide] = path
    if not found and (reason := _elsewhere(folder, names)):
        raise FileNotFoundError(f"{folder}: must hold slides ({', '.join(SUFFIXES)}), got none; {reason}")
    return found


def slide_name(name: str) -> str:
    """The name of a slide in composed Unicode (NFC), without the endings of an image and of features.

    Args:
        name: name of a file, or cell of a table.

    Returns:
        The name of the slide.

    Example:
        >>> from disentangled_mil.data.slides import slide_name
        >>> slide_name("TCGA-02-0047-01Z-00-DX1.svs.h5"), slide_name(" TCGA-02-0047-01Z-00-DX1.svs")
        ('TCGA-02-0047-01Z-00-DX1', 'TCGA-02-0047-01Z-00-DX1')
    """
    return unicodedata.normalize("NFC", _ENDINGS.sub("", name.strip()))


def _is_slide(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _elsewhere(folder: Path, names: Sequence[str]) -> str:
    """Where the slides of a folder without slides are, and what to do; empty where nothing shows it."""
    for pattern in ("*/*", "*/*/*"):
        # Folders in the order of their names: CLAM's h5_files have coordinates, and its pt_files have none.
        below = Counter(path.parent for path in sorted(folder.glob(pattern)) if _is_slide(path))
        for place, count in below.items():
            if place.name not in _NO_FEATURES:
                return f"{place} holds {count} of them: name that folder"
    other = [name for name in names if Path(name).suffix.lower() in _OTHER_SUFFIXES]
    if not other:
        return ""
    return f"it holds {len(other)} files of another ending, such as {other[0]}: write their arrays by write_bag"
