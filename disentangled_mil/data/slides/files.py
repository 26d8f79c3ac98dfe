"""The slides of a folder."""

import os
import unicodedata
from pathlib import Path

from .source import SlideError

SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".pth", ".zarr")


def slide_files(folder: str | Path) -> dict[str, Path]:
    """The files of features in a folder, by the name of the slide, which is the name of the file without its suffix.

    Args:
        folder: folder that holds a file per slide: ``.h5``, ``.hdf5``, ``.h5ad``, ``.pt``, ``.pth`` or ``.zarr``.

    Returns:
        Paths in the order of the names. Names are in composed Unicode (NFC), because systems write accents in two ways.

    Raises:
        FileNotFoundError: there is no such folder.
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
        raise FileNotFoundError(f"{folder}: no such folder")
    try:
        names = sorted(os.listdir(folder))
    except PermissionError as error:
        raise PermissionError(f"{folder}: must be readable, got no permission to list its files") from error
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if path.suffix not in SUFFIXES or name.startswith("."):
            continue
        slide = slide_name(path.stem)
        if slide in found:
            raise SlideError(f"{folder}: must hold one file per slide, got {found[slide].name} and {name}")
        found[slide] = path
    return found


def slide_name(name: str) -> str:
    """The name of a slide in composed Unicode (NFC)."""
    return unicodedata.normalize("NFC", name)
