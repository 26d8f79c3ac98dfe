"""CLAM, TRIDENT, STAMP and the released method in HDF5, told apart by names and attributes.

TRIDENT states everything at its coordinates. STAMP states it at the file, and its first version only its name: its
tiles were 224 pixels for 256 micrometers. CLAM states it in a second file beside the features,
``patches/SLIDE.h5``, with the coordinates of the tiles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ._hdf5 import COORDS, FEATURES, are_of_tiles_behind, check_features, dataset, open_hdf5, read_coords, read_rows
from ._stored import Array, Rows, StoredSlide, number, text
from .source import SlideError, SlideSource

_AUGMENTED = "augmented"
_SIDES = ("patch_size_level0", "patch_size", "overlap")
_OF_TRIDENT = {"patch_size_level0", "target_magnification"}
_OF_PLACES = ("coord", "position", "location", "spatial")  # in names of datasets that writers may choose
_FIRST_STAMP = 224, 256.0  # pixels and micrometers of a tile
_UNITS = {"um": "micrometers", "µm": "micrometers", "μm": "micrometers", "px": "pixels"}  # by the attribute of STAMP
_FOLDERS_ABOVE = 3  # CLAM's features lie in FOLDER/h5_files, and its patches beside it or one folder above.


class _WithoutAxis:
    """Features [1, N, C] as rows [N, C], or the vector [C] of a slide encoder as one row."""

    def __init__(self, data: Any) -> None:
        self._data, self.dtype = data, data.dtype

    def __getitem__(self, rows: slice) -> Array:
        if self._data.ndim == 1:
            return np.asarray(self._data[()])[None][rows]
        return np.asarray(self._data[0, rows])


def open_hdf5_slide(path: Path, file: h5py.File, features: str | None, coords: str | None) -> StoredSlide:
    """The slide in an open file, in the layout of any of the writers."""
    values = dataset(path, file, FEATURES if features is None else (features,))
    count, width = check_features(path, values)
    places = None
    if values.ndim > 1 and (coords is not None or any(name in file for name in COORDS)):
        places = dataset(path, file, COORDS if coords is None else (coords,))
        if coords is None and are_of_tiles_behind(count, places.shape):
            places = None
    rows: Rows = values if values.ndim == 2 else _WithoutAxis(values)
    slide = StoredSlide(
        SlideSource((path,), "HDF5", count, width, places is not None, augmented=_count_flags(path, file, count)),
        rows,
        values.chunks[-2] if values.chunks and values.ndim > 1 else 1,
        None if places is None else lambda: read_coords(path, places, count, width),
        (lambda: _flags(path, file, count)) if _AUGMENTED in file else None,
    )
    place_notes = {} if places is None else dict(places.attrs)
    if "encoder" in values.attrs or not _OF_TRIDENT.isdisjoint(place_notes):
        return _trident(path, slide, {**file.attrs, **values.attrs}, place_notes)
    if values.name == "/feats" or "extractor" in file.attrs:
        return _stamp(path, slide, dict(file.attrs), integers=places is not None and places.dtype.kind in "iu")
    if values.name == "/Res_feature":
        return slide._replace(source=slide.source._replace(writer="released method"))
    return slide if places is None else clam_slide(path, slide)


def refuse_other_coordinates(path: Path, file: h5py.File, count: int) -> None:
    """Refuse coordinates of N patches under an unknown name, also in a group, which would silently be ignored."""

    def refuse(name: str, item: Any) -> None:
        shape, words = tuple(getattr(item, "shape", None) or ()), name.casefold()
        like_places = any(word in words for word in _OF_PLACES) and shape in ((count, 2), (1, count, 2))
        in_root = "coord" in words and "/" not in name and len(shape) in (2, 3) and shape[-1] == 2
        if name not in COORDS and (like_places or in_root):
            raise SlideError(
                f"{path}: coordinates must be in a dataset {' or '.join(COORDS)}, got {name}; name it by "
                f"coords = {name!r}"
            )

    for name, item in file.items():  # links too
        refuse(name, item)
    file.visititems(refuse)


def clam_slide(path: Path, slide: StoredSlide) -> StoredSlide:
    """Complete a slide of CLAM by the tile size in ``patches/SLIDE.h5``, if that file is near."""
    source = slide.source._replace(writer="CLAM", unit="level-0 pixels")
    folders = [*path.parents][:_FOLDERS_ABOVE]
    patches = next((f for folder in folders if (f := folder / "patches" / f"{path.stem}.h5").is_file()), None)
    if patches is None:
        return slide._replace(source=source)
    with open_hdf5(patches) as file:
        notes = dict(dataset(patches, file, COORDS).attrs)
    downsample = [number(side) for side in np.ravel(notes.get("downsample", 1))]
    extent = [number(side) for side in np.ravel(notes.get("level_dim", ()))]
    side, scale = number(notes.get("patch_size")), downsample[0] if downsample else None
    if side is None or scale is None:
        raise SlideError(f"{patches}: coords must have the attributes patch_size and downsample, got {notes}")
    sides = [size * scale for size in extent if size is not None]
    return slide._replace(
        source=source._replace(tile=side * scale), extent=(sides[0], sides[1]) if len(sides) == 2 else None
    )


def _trident(path: Path, slide: StoredSlide, notes: Mapping[str, Any], places: Mapping[str, Any]) -> StoredSlide:
    width, height = (number(places.get(f"level0_{side}")) for side in ("width", "height"))
    scanned = number(places.get("level0_magnification"))
    source = slide.source._replace(
        writer="TRIDENT",
        encoder=text(notes.get("encoder")),
        magnification=number(places.get("target_magnification")),
        tile=number(places.get("patch_size_level0")),
        unit="level-0 pixels" if places else None,
        unit_um=10 / scanned if scanned else None,  # 10x is 1 micrometer per pixel
    )
    sides = {name: places[name] for name in _SIDES if name in places}
    return slide._replace(
        source=source,
        step=(lambda: _step(path, sides)) if _SIDES[0] in sides else lambda: None,
        extent=(width, height) if width and height else None,
    )


def _stamp(path: Path, slide: StoredSlide, notes: Mapping[str, Any], *, integers: bool) -> StoredSlide:
    pixels = number(notes.get("tile_size_px"))
    side = number(notes.get("tile_size_um")) or number(notes.get("tile_size"))
    placed = slide.source.placed
    unit = _stamp_unit(path, notes, side) if placed else None
    mpp = side / pixels if side and pixels else None
    encoder = text(notes.get("encoder")) or text(notes.get("extractor"))
    if side is None and unit is None and "unit" not in notes and integers and encoder is not None:
        side, unit, mpp = float(_FIRST_STAMP[0]), "tile pixels", _FIRST_STAMP[1] / _FIRST_STAMP[0]
    tile = side if placed else None
    unit_um = {"micrometers": 1.0, "tile pixels": mpp}.get(unit) if unit else None
    source = slide.source._replace(writer="STAMP", encoder=encoder, mpp=mpp, tile=tile, unit=unit, unit_um=unit_um)
    return slide._replace(source=source, step=lambda: tile)


def _stamp_unit(path: Path, notes: Mapping[str, Any], side: float | None) -> str | None:
    """The unit of coordinates; None for pixels, because the attributes do not tell in which level of the slide."""
    stated = text(notes.get("unit"))
    if stated is None:
        return "micrometers" if side else None
    unit = _UNITS.get(stated.casefold())
    if unit is None or (unit == "pixels" and side):
        size = f" with a tile of {side:g} micrometers" if side else ""
        raise SlideError(
            f"{path}: the attribute unit must be 'um' for micrometers, or 'px' without a tile size in micrometers, got "
            f"{stated!r}{size}; correct the attributes"
        )
    return "micrometers" if unit == "micrometers" else None


def _step(path: Path, sides: Mapping[str, Any]) -> float:
    """Side of a grid cell in level-0 pixels: the patch size minus the overlap in the attributes."""
    try:
        numbers = {name: float(np.asarray(value).item()) for name, value in sides.items()}
        side = numbers["patch_size_level0"]
        step = side - round(numbers.get("overlap", 0) * side / numbers.get("patch_size", side))
    except (TypeError, ValueError, ArithmeticError, LookupError):
        step = 0.0
    if not 0 < step < float("inf"):
        noted = ", ".join(f"{name} = {value!r}" for name, value in sides.items())
        raise SlideError(
            f"{path}: attributes of coords must give a positive side of a grid cell, got {noted}; give it as step"
        )
    return step


def _count_flags(path: Path, file: h5py.File, count: int) -> int:
    """The number of augmented patches; flags of another number are refused only where they are needed."""
    stored = file.get(_AUGMENTED)
    if not isinstance(stored, h5py.Dataset) or stored.shape not in ((count,), (1, count)):
        return 0
    return int(_flags(path, file, count).sum())


def _flags(path: Path, file: h5py.File, count: int) -> Array:
    """Flags [N] of augmented patches."""
    flags = read_rows(dataset(path, file, (_AUGMENTED,)), axes=1)
    if flags.shape != (count,):
        raise SlideError(f"{path}: augmented must have one flag per patch, [{count}], got {list(flags.shape)}")
    return flags.astype(bool)
