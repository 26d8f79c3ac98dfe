"""Patch features of slides as bags, whatever program wrote them."""

import warnings
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import torch

from ..._checks import check_count, check_type
from ..._errors import reading
from ...bags import Bag, Grid
from ._choice import Choice, reads_part, share_tiles
from ._opening import as_paths, check_step, open_slide
from ._stored import StoredSlide
from ._values import read_features, read_places
from .facts import joined
from .places import lattice
from .source import SlideError, SlideSource


class SlideBag(NamedTuple):
    """A bag, and what its files say about themselves.

    Attributes:
        bag: bag with B = 1.
        source: writer, encoder, magnification and tile size.
    """

    bag: Bag
    source: SlideSource


def read_bag(
    *paths: str | Path,
    features: str | None = None,
    coords: str | None = None,
    step: float | None = None,
    as_set: bool = False,
    drop_augmented: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> SlideBag:
    """Read one slide, or all slides of a patient, as a batch of one bag. Features stay in the type of the file.

    The writer is recognized by the content of the file:

    ===============  =====================================================================================
    writer           content
    ===============  =====================================================================================
    CLAM             HDF5 ``features`` and ``coords`` without attributes. The tile size is that of
                     ``patches/SLIDE.h5`` beside the file or up to two folders above, else the stride
    CLAM, ``.pt``    a tensor alone, with the coordinates of ``../h5_files/SLIDE.h5`` if it is there
    TRIDENT          HDF5 ``features`` and ``coords``, whose attributes say tile size, overlap and magnification
    STAMP            HDF5 ``feats`` and ``coords``; the file's attributes say encoder and tile size. Coordinates
                     are micrometers. Those of the first version are pixels of tiles of 224 for 256 micrometers
    AnnData          ``X``, and ``obsm["spatial"]`` or the columns ``x`` and ``y`` of ``obs``, in ``.h5ad`` or in a
                     table of a ``.zarr``. Other names in use are known. Needs the extra ``anndata``
    slide encoders   a vector [C] or [1, C], which is a bag of one. Coordinates of its tiles are left out
    released method  HDF5 ``Res_feature`` [1, N, C] without coordinates
    ===============  =====================================================================================

    The rules for unusual slides:

    * A slide without tiles is refused. :func:`slide_source` reads it and counts 0 tiles.
    * A slide of one or two tiles is read as any other.
    * Tiles that repeat coordinates are kept and share a cell. Flags ``augmented`` (STAMP) mark copies of tiles;
      ``drop_augmented`` leaves them out.
    * Several files are one set, in their order, because coordinates of different slides share no frame. They must
      agree in width, encoder and magnification. Files without tiles are left out, if others have tiles.
    * Of more than ``max_tokens`` tiles, that number is kept, spread evenly over the tissue. A warning says so. Cells of
      the grid grow, so that they are as full as those of the whole slide.

    Args:
        *paths: files, at least one.
        features: name of the features dataset, or of a table of a ``.zarr``; by default that of the writer.
        coords: name of the coordinates, which must then be there; by default that of the writer, if present.
        step: side of a grid cell in the unit of the coordinates; by default from the file, else inferred (see
            :meth:`~disentangled_mil.bags.Grid.from_coords`).
        as_set: flag that leaves out the coordinates of a single slide, too.
        drop_augmented: flag that leaves out augmented tiles.
        max_tokens: largest number of tiles to keep.
        seed: seed of the choice of these tiles.
        quiet: flag that hides the warning about tiles that are left out.

    Shape:
        in the file: ``features`` [N, C], [1, N, C] or [C]; ``coords`` [N, 2] or [1, N, 2]; ``augmented`` [N].

    Returns:
        A bag with B = 1, on the slide's own grid if it has coordinates, else a set; and its source.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
        TypeError: an argument has another type.
        ValueError: an argument is out of range; a file is damaged or of no known layout; it lacks a part or declares
            more than it holds; it holds no tile, wrong shapes or types, values that are not finite, coordinates that
            lie outside of the slide or under an unknown name; or files disagree. The message names file, row and
            reason.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import read_bag, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8), torch.tensor([[0, 0], [448, 0], [448, 448]]), step=448)
        >>> bag, source = read_bag(path)
        >>> bag.patches.shape, bag.grid.shapes, source.writer, source.tile
        (torch.Size([1, 3, 8]), ((2, 2),), 'TRIDENT', 448.0)
    """
    files = as_paths(paths)
    check_step(step)
    check_type("seed", seed, Integral, "an integer")
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    if not quiet and reads_part(files, max_tokens, drop_augmented=drop_augmented, features=features, coords=coords):
        warnings.warn(
            "slides with more tiles than max_tokens are read in part, spread evenly over the tissue", stacklevel=2
        )
    if len(files) == 1 and not as_set:
        with open_slide(files[0], features, coords, as_set=False) as slide:
            return _on_its_grid(slide, Choice(drop_augmented, max_tokens, seed), step)
    shares = share_tiles(files, max_tokens, features, coords)
    sources, parts = [], []
    for path, share in zip(files, shares, strict=True):
        with open_slide(path, features, coords, as_set=True) as slide:
            sources.append(slide.source)
            source = joined(sources)
            if slide.source.tokens:
                places = None if share is None else read_places(slide)
                rows, _ = Choice(drop_augmented, share, seed).of(slide, places)
                parts.append(read_features(slide, rows))
    if not parts:
        raise SlideError(f"{files[0]}: a slide must hold at least one patch, got none; leave the slide out")
    return SlideBag(Bag((parts[0] if len(parts) == 1 else torch.cat(parts))[None]), source)


def _on_its_grid(slide: StoredSlide, choice: Choice, step: float | None) -> SlideBag:
    """A single slide at its coordinates, if it has them."""
    path, source = slide.source.files[0], slide.source
    if not source.tokens:
        raise SlideError(f"{path}: a slide must hold at least one patch, got none; leave the slide out")
    places = read_places(slide)
    rows, wider = choice.of(slide, places)
    if places is None:
        return SlideBag(Bag(read_features(slide, rows)[None]), source)
    with reading(path, kind=SlideError):
        coords, side, source = lattice(slide, places, step)
        side = None if side is None else side * wider
        # Bag.from_slide would check the features again, which takes longer than reading them.
        return SlideBag(Bag(read_features(slide, rows)[None], Grid.from_coords(coords[rows], step=side)), source)
