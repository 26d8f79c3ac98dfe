"""The slides of a folder."""

import os
import re
import unicodedata
from pathlib import Path

from ..._errors import reads_file
from .source import SlideError

SUFFIXES = (".h5", ".hdf5", ".h5ad", ".pt", ".pth", ".zarr")
IMAGE_SUFFIXES = (
    ".svs", ".ndpi", ".tif", ".tiff", ".mrxs", ".scn", ".czi", ".bif", ".vms", ".vmu", ".vsi", ".svslide", ".dcm",
)  # fmt: skip

# Of files of whole slides and of features, which stand behind names in tables and in names of files.
_ENDINGS = re.compile(f"({'|'.join(map(re.escape, (*IMAGE_SUFFIXES, *SUFFIXES)))})+$", re.IGNORECASE)


@reads_file
def slide_files(folder: str | Path) -> dict[str, Path]:
    """The files of features in a folder, by the name of the slide, see :func:`slide_name`.

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
        raise FileNotFoundError(f"{folder}: no such folder; correct the path, or extract the features first")
    try:
        names = sorted(os.listdir(folder))
    except PermissionError as error:
        raise PermissionError(f"{folder}: must be readable, got no permission to list its files") from error
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if path.suffix not in SUFFIXES or name.startswith("."):
            continue
        slide = slide_name(name)
        if slide in found:
            raise SlideError(f"{folder}: must hold one file per slide, got {found[slide].name} and {name}")
        found[slide] = path
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
