"""Patch features of slides as bags, whatever program wrote them."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._checks import check_count
from ...bags import Bag, Grid, lattice_step
from ._anndata import is_anndata, open_anndata_group, open_zarr_slide, refuse_shapes, require_anndata
from ._hdf5 import open_hdf5
from ._hdf5_writers import open_hdf5_slide, refuse_other_coordinates
from ._spread import spread_rows
from ._stored import Array, StoredSlide
from ._tensor_file import open_tensor_slide
from ._values import as_coords, read_features, read_places
from .source import SlideError, SlideSource, difference

# The first bytes of files of PyTorch: an archive, or a pickle before version 1.6.
_OF_PYTORCH = (b"PK\x03\x04", b"\x80")


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
                     table of a ``.zarr``. Needs the extra ``anndata``
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
    * Of more than ``max_tokens`` tiles, that number is kept, spread evenly over the tissue. A warning says so.

    Args:
        *paths: files, at least one.
        features: name of the features dataset, or of a table of a ``.zarr``; by default that of the writer.
        coords: name of the coordinates, which must then be there; by default that of the writer, if present.
        step: side of a grid cell in the unit of the coordinates; by default from the file, else inferred (see
            :meth:`~disentangled_mil.bags.Grid.from_coords`).
        as_set: whether the coordinates of a single slide are left out too.
        drop_augmented: whether augmented tiles are left out.
        max_tokens: largest number of tiles to keep.
        seed: seed of the choice of these tiles.

    Shape:
        in the file: features [N, C], [1, N, C] or [C]; coords [N, 2] or [1, N, 2]; augmented [N].

    Returns:
        A bag with B = 1, on the slide's own grid if it has coordinates, else a set; and its source.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
        ValueError: a file is damaged or of no known layout; it lacks a part or declares more than it holds; it holds no
            tile, wrong shapes or types, values that are not finite, coordinates that lie outside of the slide or under
            an unknown name; or files disagree. The message names file, row and reason.

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
    files = _files(paths)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)
    if len(files) == 1 and not as_set:
        with _open(files[0], features, coords, as_set=False) as slide:
            return _on_its_grid(slide, _Choice(drop_augmented, max_tokens, seed), step)
    shares = _shares(files, max_tokens, features, coords)
    sources, parts = [], []
    for path, share in zip(files, shares, strict=True):
        with _open(path, features, coords, as_set=True) as slide:
            sources.append(slide.source)
            source = _joined(sources)
            if slide.source.tokens:
                rows = _Choice(drop_augmented, share, seed).rows(slide, None if share is None else read_places(slide))
                parts.append(read_features(slide, rows))
    if not parts:
        raise SlideError(f"{files[0]}: a slide must hold at least one patch, got none; leave the slide out")
    return SlideBag(Bag.from_slide(parts[0] if len(parts) == 1 else torch.cat(parts)), source)


class TilePlaces(NamedTuple):
    """Where the tiles of one slide lie.

    Attributes:
        source: writer, encoder, magnification and tile size.
        coords: upper left corners (x, y) of the tiles [n, 2]; None where the file has none.
        tile: side of a tile in the unit of the coordinates; None where the file does not show it.
    """

    source: SlideSource
    coords: Tensor | None
    tile: float | None


def tile_places(
    *paths: str | Path,
    coords: str | None = None,
    drop_augmented: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
) -> tuple[TilePlaces, ...]:
    """Where the tiles of :func:`read_bag` lie, file by file: those of the bag in its order, without their features.

    Args:
        *paths: files of one bag, at least one.
        coords: name of the coordinates, see :func:`read_bag`.
        drop_augmented: whether augmented tiles are left out.
        max_tokens: largest number of tiles to keep.
        seed: seed of the choice of these tiles.

    Returns:
        The places of every file. A file without tiles has none.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
        ValueError: :func:`read_bag` would refuse the coordinates of a file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import tile_places, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(2, 8), torch.tensor([[0, 0], [448, 0]]), step=448)
        >>> (places,) = tile_places(path)
        >>> places.coords.tolist(), places.tile
        ([[0, 0], [448, 0]], 448.0)
    """
    files = _files(paths)
    found = []
    for path, share in zip(files, _shares(files, max_tokens, None, coords), strict=True):
        with _open(path, None, coords, as_set=False) as slide:
            stored = read_places(slide) if slide.source.tokens else None
            if stored is None:
                found.append(TilePlaces(slide.source, None, slide.source.tile))
                continue
            every = as_coords(stored)
            rows = _Choice(drop_augmented, share, seed).rows(slide, None if share is None else stored)
            found.append(TilePlaces(slide.source, every[rows], slide.source.tile or lattice_step(every)))
    return tuple(found)


def slide_source(
    *paths: str | Path, features: str | None = None, coords: str | None = None, as_set: bool = False
) -> SlideSource:
    """What the files of a slide, or of all slides of a patient, say about themselves, from their metadata alone.

    Args:
        *paths: files, at least one.
        features: name of the features dataset, see :func:`read_bag`.
        coords: name of the coordinates, see :func:`read_bag`.
        as_set: whether coordinates do not matter.

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
    for path in _files(paths):
        with _open(path, features, coords, as_set=as_set) as slide:
            sources.append(slide.source)
    if len(sources) > 1 or as_set:
        return _joined(sources)
    return sources[0]


def check_places(path: str | Path, *, step: float | None = None) -> None:
    """Check the coordinates of a slide as :func:`read_bag` does, without reading its features.

    Args:
        path: file of the slide.
        step: side of a grid cell, see :func:`read_bag`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: :func:`read_bag` would refuse the file or its coordinates.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import check_places, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.randn(3, 8), torch.tensor([[0, 0], [448, 0], [448, -448]]), step=448)
        >>> check_places(path)
        Traceback (most recent call last):
            ...
        disentangled_mil.data.slides.source.SlideError: ...slide.h5: coords must lie between 0 and 10,000,000, got ...
    """
    path = Path(path)
    with _open(path, None, None, as_set=False) as slide:
        places = read_places(slide)
        if places is not None and slide.source.tokens:
            with _named(path):
                coords, side, _ = _lattice(slide, places, step)
                Grid.from_coords(coords, step=side)


class _Choice(NamedTuple):
    """Which tiles of a slide are read."""

    drop_augmented: bool
    most: int | None
    seed: int

    def rows(self, slide: StoredSlide, places: Array | None) -> NDArray[np.int64]:
        """Rows of the chosen tiles, ascending."""
        kept = np.arange(slide.source.tokens)
        if self.drop_augmented and slide.augmented is not None:
            kept = kept[~slide.augmented()]
            if not len(kept):
                raise SlideError(
                    f"{slide.source.files[0]}: a slide must hold at least one patch, got only augmented ones"
                )
        if self.most is None or len(kept) <= self.most:
            return kept
        # Python shows equal warnings once, so that a cohort does not fill the screen.
        warnings.warn(
            "slides with more tiles than max_tokens are read in part, spread evenly over the tissue", stacklevel=4
        )
        chosen: NDArray[np.int64] = kept[
            spread_rows(len(kept), self.most, None if places is None else places[kept], self.seed)
        ]
        return chosen


def _on_its_grid(slide: StoredSlide, choice: _Choice, step: float | None) -> SlideBag:
    """A single slide at its coordinates, if it has them."""
    path, source = slide.source.files[0], slide.source
    if not source.tokens:
        raise SlideError(f"{path}: a slide must hold at least one patch, got none; leave the slide out")
    places = read_places(slide)
    rows = choice.rows(slide, places)
    if places is None:
        return SlideBag(Bag.from_slide(read_features(slide, rows)), source)
    with _named(path):
        coords, side, source = _lattice(slide, places, step)
        return SlideBag(Bag.from_slide(read_features(slide, rows), coords[rows], step=side), source)


def _lattice(slide: StoredSlide, places: Array, step: float | None) -> tuple[Tensor, float | None, SlideSource]:
    """Coordinates, the side of a grid cell, and the source with the size of a tile."""
    coords, source = as_coords(places), slide.source
    if step is None:
        step = slide.step()
    if step is None:
        # All tiles count, also those that are not kept. Overlapping tiles are nearer than their size.
        stride = lattice_step(coords)
        step = min((side for side in (stride, source.tile) if side is not None), default=None)
        source = source._replace(tile=source.tile or stride)
    return coords, step, source


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file."""
    try:
        yield
    except SlideError:
        raise
    except ValueError as error:
        raise SlideError(f"{path}: {error}") from error


def _files(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    if not paths:
        raise ValueError("paths must name at least one file, got none")
    return tuple(map(Path, paths))


@contextmanager
def _open(path: Path, features: str | None, coords: str | None, *, as_set: bool) -> Iterator[StoredSlide]:
    """The slide in a file of any layout; unless it is read as a set, coordinates under unknown names are refused."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
        first = _first_bytes(path) if is_file else b""
    except PermissionError as error:
        raise PermissionError(f"{path}: must be readable, got no permission to read it") from error
    if is_folder:
        with open_zarr_slide(path, features, coords) as slide:
            if not as_set and slide.coords is None:
                refuse_shapes(path, slide.source)
            yield slide
    elif not is_file:
        raise FileNotFoundError(f"{path}: there is no such file")
    elif first.startswith(_OF_PYTORCH):
        with open_tensor_slide(path, features, coords) as slide:
            yield slide
    else:
        with open_hdf5(path) as file:
            if is_anndata(file):
                require_anndata(path)
                yield open_anndata_group(path, file, coords)
                return
            slide = open_hdf5_slide(path, file, features, coords)
            if not as_set and slide.coords is None and slide.source.tokens > 1:
                refuse_other_coordinates(path, file)
            yield slide


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _joined(sources: Sequence[SlideSource]) -> SlideSource:
    """The source of several slides in one set; slides without tiles agree with all others."""
    full = [source for source in sources if source.tokens] or list(sources[:1])
    first = full[0]
    for source in full[1:]:
        reason = difference(source, first.encoder, first.magnification, first.mpp)
        if source.width != first.width:
            reason = f"must have {first.width} features per patch, got {source.width}"
        if reason is not None:
            raise SlideError(f"{source.files[0]}: {reason}; {first.files[0]} is in the same bag")
    return first._replace(
        files=tuple(path for source in sources for path in source.files),
        tokens=sum(source.tokens for source in sources),
        placed=False,
        tile=None,
        unit=None,
        unit_um=None,
    )


def _shares(files: Sequence[Path], most: int | None, features: str | None, coords: str | None) -> list[int | None]:
    """How many tiles of every slide are kept, in proportion; None for all."""
    if most is None:
        return [None] * len(files)
    tokens = [slide_source(path, features=features, coords=coords, as_set=True).tokens for path in files]
    total = sum(tokens)
    if total <= most:
        return [None] * len(tokens)
    ends = np.cumsum([0, *tokens]) * most // total
    return [int(share) for share in np.diff(ends)]
