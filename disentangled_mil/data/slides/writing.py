"""Patch features of one slide, written to one HDF5 file."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ..._checks import check_shape
from ..._files import replacing
from ._hdf5 import COORDS, FEATURES
from ._values import check_finite


def write_bag(
    path: str | Path,
    features: Tensor,
    coords: Tensor | None = None,
    *,
    step: float | None = None,
    encoder: str | None = None,
    magnification: float | None = None,
    attributes: Mapping[str, float | str] | None = None,
) -> None:
    """Write one slide in the layout of TRIDENT, which :func:`read_bag` reads.

    The file appears whole or not at all; an old file stays until then. A slide without patches is written as well, and
    :func:`slide_source` reads it.

    Args:
        path: HDF5 file in a folder that exists.
        features: patch features in float16, float32 or float64, which is kept.
        coords: (x, y) of every patch.
        step: side of a grid cell in the unit of ``coords``, stored as the attribute ``patch_size_level0``.
        encoder: name of the encoder.
        magnification: objective magnification of the tiles.
        attributes: further attributes of the coordinates.

    Shape:
        ``features`` [N, C], ``coords`` [N, 2].

    Raises:
        TypeError: ``features`` has another dtype.
        ValueError: shapes disagree, a value is not finite, ``step`` or ``magnification`` is not positive, or what
            describes coordinates comes without them.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import read_bag, write_bag
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5"
        >>> write_bag(path, torch.ones(2, 4).half())
        >>> read_bag(path).bag.patches.dtype
        torch.float16
    """
    count = check_shape("features", features, "N C")["N"]
    if features.dtype not in (torch.float16, torch.float32, torch.float64):
        raise TypeError(f"features must be float16, float32 or float64, got {features.dtype}")
    values = features.detach().cpu().numpy()
    check_finite("features", values, np.arange(count))
    notes = {"patch_size_level0": ("step", step), "target_magnification": ("magnification", magnification)}
    for argument, value in notes.values():
        if value is not None and (coords is None or not 0 < value < float("inf")):
            raise ValueError(f"{argument} must be positive and finite and come with coords, got {value}")
    if attributes and coords is None:
        raise ValueError(f"attributes must come with coords, got {', '.join(attributes)}")
    places = None
    if coords is not None:
        check_shape("coords", coords, "N 2", {"N": count})
        places = coords.detach().cpu().numpy()
        check_finite("coords", places, np.arange(count))
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        dataset = file.create_dataset(FEATURES[0], data=values)
        if encoder is not None:
            dataset.attrs["encoder"] = encoder
        if places is not None:
            dataset = file.create_dataset(COORDS[0], data=places)
            dataset.attrs.update({name: value for name, (_, value) in notes.items() if value is not None})
            dataset.attrs.update(attributes or {})
