"""Maps as AnnData, in the layout of LazySlide: features in ``X``, columns in ``obs``, places in ``obsm["spatial"]``."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from .._checks import as_path, check_positive, check_shape, check_type
from .._extras import naming_extra
from .._files import replacing
from .tile_map import TileMap

_SHAPES = "tiles"
_TABLE = {"region": _SHAPES, "region_key": "library_id", "instance_key": "tile_id"}


def write_anndata(
    path: str | Path, tiles: TileMap, features: Tensor, *, mpp: float | None = None, step: float | None = None
) -> None:
    """Write the map of one magnification beside its features. Needs the extra ``anndata``.

    ``obs`` has the columns of the map, ``tile_id`` and ``class``; ``uns["tile_spec"]`` has the size of the tiles. The
    file is a table of SpatialData for shapes called ``tiles``, the name that LazySlide gives them.
    :func:`~disentangled_mil.data.slides.read_bag` reads the file too.

    Args:
        path: ``.h5ad`` file to write.
        tiles: map whose tiles have one size.
        features: features of the tiles.
        mpp: micrometers per pixel of the tiles, if it is known.
        step: distance of neighboring tiles in the unit of the coordinates; by default their size.

    Shape:
        ``features`` [N, C].

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ValueError: shapes disagree, or tiles differ in size.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.data.slides import read_bag
        >>> from disentangled_mil.explain import TileMap, write_anndata
        >>> path = Path(tempfile.mkdtemp()) / "slide.h5ad"
        >>> tiles = TileMap(torch.tensor([[0, 0], [448, 0]]), torch.tensor([448, 448]), {"a": torch.ones(2)})
        >>> write_anndata(path, tiles, torch.ones(2, 8))
        >>> read_bag(path).bag.grid.shapes
        ((2, 1),)
    """
    path = as_path("path", path)
    check_type("tiles", tiles, TileMap, "a TileMap")
    for name, number in (("mpp", mpp), ("step", step)):
        if number is not None:
            check_positive(name, number)
    check_shape("features", features, "N C", {"N": len(tiles)})
    if (tiles.size != tiles.size[0]).any():
        raise ValueError(f"tiles must have one size, got {sorted(set(tiles.size.tolist()))}")
    with naming_extra("anndata"):
        from anndata import AnnData

    side = float(tiles.size[0])
    spec: dict[str, Any] = {"width": side, "height": side, "base_downsample": 1.0}
    spec |= {"stride_width": step or side, "stride_height": step or side}
    spec |= {} if mpp is None else {"mpp": mpp}
    obs = tiles.table()
    obs.insert(0, "tile_id", np.arange(len(obs)))
    obs.insert(1, "library_id", pd.Categorical([_SHAPES] * len(obs)))
    obs.index = obs.index.astype(str)
    content = AnnData(
        features.detach().cpu().numpy(),
        obs=obs,
        obsm={"spatial": tiles.coords.cpu().numpy()},
        uns={"tile_spec": spec, "classes": list(tiles.classes), "spatialdata_attrs": dict(_TABLE)},
    )
    with replacing(path) as temporary:
        content.write_h5ad(temporary)
