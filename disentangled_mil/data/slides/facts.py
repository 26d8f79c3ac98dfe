"""What the files of a slide say about themselves, without reading its features."""

from collections.abc import Sequence
from pathlib import Path

from ._opening import as_paths, open_slide
from .source import SlideError, SlideSource, difference


def slide_source(
    *paths: str | Path, features: str | None = None, coords: str | None = None, as_set: bool = False
) -> SlideSource:
    """What the files of a slide, or of all slides of a patient, say about themselves, from their metadata alone.

    Args:
        *paths: files, at least one.
        features: name of the features dataset, see :func:`read_bag`.
        coords: name of the coordinates, see :func:`read_bag`.
        as_set: flag, True if coordinates do not matter.

    Returns:
        The source. A slide without tiles has 0 ``tokens``.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
        ValueError: :func:`read_bag` would refuse the metadata of a file, or files disagree.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import slide_source, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8))
        >>> print(slide_source(path))
        HDF5: 3 tiles of an unknown encoder (width 8), unknown magnification, no coordinates
    """
    sources = []
    for path in as_paths(paths):
        with open_slide(path, features, coords, as_set=as_set) as slide:
            sources.append(slide.source)
    if len(sources) > 1 or as_set:
        return joined(sources)
    return sources[0]


def joined(sources: Sequence[SlideSource]) -> SlideSource:
    """The source of several slides in one set; slides without tiles agree with all others."""
    full = [source for source in sources if source.tokens] or list(sources[:1])
    first = full[0]
    for source in full[1:]:
        reason = difference(source, first.encoder, first.magnification, first.mpp)
        if source.width != first.width:
            reason = f"must have {first.width} features per patch, got {source.width}"
        if reason is not None:
            raise SlideError(f"{source.files[0]}: {reason}; {first.files[0]} is in the same bag", source.files[0])
    return first._replace(
        files=tuple(path for source in sources for path in source.files),
        tokens=sum(source.tokens for source in sources),
        augmented=sum(source.augmented for source in sources),
        placed=False,
        tile=None,
        unit=None,
        unit_um=None,
    )
