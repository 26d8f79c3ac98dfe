"""A tensor alone in a file of PyTorch, as CLAM writes beside its HDF5 files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._hdf5 import COORDS, are_of_tiles_behind, dataset, open_hdf5, read_coords
from ._hdf5_writers import clam_slide
from ._stored import Array, StoredSlide, vector_or_rows
from .source import SlideError, SlideSource


class _TensorRows:
    """The rows of a tensor; bfloat16, which NumPy lacks, as float32."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.float() if values.dtype == torch.bfloat16 else values
        self.dtype: np.dtype[Any] = self._values[:0].numpy().dtype

    def __getitem__(self, rows: slice) -> Array:
        return self._values[rows].numpy()


@contextmanager
def open_tensor_slide(path: Path, features: str | None, coords: str | None) -> Iterator[StoredSlide]:
    """The slide in a file of PyTorch: a set, unless CLAM's ``h5_files/SLIDE.h5`` beside it holds coordinates."""
    for argument, value in (("features", features), ("coords", coords)):
        if value is not None:
            raise SlideError(f"{path}: {argument} must be None for a tensor, which has no name, got {value!r}")
    values = _load(path)
    sizes = vector_or_rows(tuple(values.shape))
    if sizes is None or (sizes[0] and not sizes[1]):
        raise SlideError(f"{path}: features must have shape [N, C], [1, N, C] or [C], got {list(values.shape)}")
    count, width = sizes
    slide = StoredSlide(SlideSource((path,), "tensor", count, width, False), _TensorRows(values.reshape(count, width)))
    beside = path.parent.parent / "h5_files" / f"{path.stem}.h5"
    if path.parent.name != "pt_files" or not beside.is_file() or values.ndim == 1:
        yield slide
        return
    with open_hdf5(beside) as file:
        places = dataset(beside, file, COORDS)
        if are_of_tiles_behind(count, places.shape):
            yield slide
            return

        def read() -> Array:
            return read_coords(beside, places, count, width, f" in {path}")

        yield clam_slide(path, slide._replace(source=slide.source._replace(placed=True), coords=read))


def _is_readable(values: Tensor) -> bool:
    """Whether a tensor holds numbers of a type that NumPy has, or of bfloat16, one after the other."""
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    plain = values.layout is torch.strided and not values.is_nested and not values.is_meta
    return plain and values.dtype in kinds


def _load(path: Path) -> Tensor:
    """The tensor, mapped into memory if its format allows it; no code of the file is run."""
    try:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of the format before PyTorch 1.6
            values = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise PermissionError(f"{path}: must be readable, got no permission to read it") from error
    except Exception as error:  # unpicklers raise anything, in long texts about torch.load
        raise SlideError(
            f"{path}: must hold a tensor that torch.load(weights_only=True) reads, got {type(error).__name__}, so the "
            "file is cut or holds other objects, such as an array of NumPy; save a tensor, "
            "torch.save(torch.from_numpy(features), path), or features with coordinates by write_bag"
        ) from error
    if not isinstance(values, Tensor) or not _is_readable(values):
        came = type(values).__name__
        if isinstance(values, Tensor):
            layout = "" if values.layout is torch.strided else f" of the layout {values.layout}"
            came = f"a tensor of {values.dtype}{layout}{' without values' if values.is_meta else ''}"
        raise SlideError(
            f"{path}: must hold one floating-point tensor alone, got {came}; save the features alone, or with "
            "coordinates by write_bag"
        )
    declared, stored = values.numel() * values.element_size(), values.untyped_storage().nbytes()
    if stored < declared:  # an expanded tensor repeats one row without end
        raise SlideError(
            f"{path}: must hold the {list(values.shape)} numbers that it declares, got {stored} bytes for {declared}; "
            "save a contiguous tensor"
        )
    return values.detach()
