"""Maps as GeoJSON that QuPath opens: one polygon per tile.

QuPath reads a FeatureCollection whose coordinates are pixels of the full resolution (level 0) and takes from the
properties of a feature: ``objectType``, ``classification`` with name and color, and ``measurements``, an object of
numbers. QuPath 0.4 and later read this form.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._checks import as_path, check_texts, check_type
from .._colors import CLASSES, rgb
from .._files import replacing
from .tile_map import TileMap
from .views import HEAD


def write_geojson(path: str | Path, tiles: TileMap, *, measurements: Sequence[str] | None = None) -> None:
    """Write a map as GeoJSON for QuPath, with a tile object per tile.

    In QuPath: drag the file onto the open slide. *Measure > Show measurement maps* colors the tiles by a measurement.

    Args:
        path: file to write.
        tiles: map whose coordinates are level-0 pixels.
        measurements: columns that become measurements; by default all except those of single heads. NaN is left out.

    Raises:
        ValueError: the unit of the coordinates is another, there are more classes than colors, or a column is unknown.

    Example:
        >>> import json, tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.explain import TileMap, write_geojson
        >>> path = Path(tempfile.mkdtemp()) / "slide.geojson"
        >>> columns = {"tumor": torch.tensor([1.0])}
        >>> tiles = TileMap(torch.tensor([[0, 448]]), torch.tensor([448]), columns, ("tumor",), unit="level-0 pixels")
        >>> write_geojson(path, tiles)
        >>> feature = json.loads(path.read_text())["features"][0]
        >>> feature["geometry"]["coordinates"]
        [[[0, 448], [448, 448], [448, 896], [0, 896], [0, 448]]]
        >>> feature["properties"]["classification"], feature["properties"]["measurements"]
        ({'name': 'tumor', 'color': [230, 159, 0]}, {'tumor': 1.0})
    """
    path = as_path("path", path)
    check_type("tiles", tiles, TileMap, "a TileMap")
    if tiles.unit != "level-0 pixels":
        raise ValueError(f"tiles must have coordinates in level-0 pixels, as QuPath reads them, got {tiles.unit}")
    if len(tiles.classes) > len(CLASSES):
        raise ValueError(f"tiles must have at most {len(CLASSES)} classes, got {len(tiles.classes)}")
    chosen = (
        [name for name in tiles.columns if HEAD not in name]
        if measurements is None
        else check_texts("measurements", measurements)
    )
    if unknown := [name for name in chosen if name not in tiles.columns]:
        raise ValueError(f"measurements must be among the columns {', '.join(tiles.columns)}, got {unknown[0]!r}")
    classes = [{"name": name, "color": rgb(color)} for name, color in zip(tiles.classes, CLASSES, strict=False)]
    rows = zip(*(tiles.columns[name].tolist() for name in chosen), strict=True) if chosen else [()] * len(tiles)
    features = []
    for (x, y), side, label, values in zip(
        tiles.coords.tolist(), tiles.size.tolist(), tiles.labels.tolist(), rows, strict=True
    ):
        properties: dict[str, Any] = {"objectType": "tile"}
        if label >= 0:
            properties["classification"] = classes[label]
        properties["measurements"] = {
            name: float(f"{value:.5g}") for name, value in zip(chosen, values, strict=True) if math.isfinite(value)
        }
        geometry = {"type": "Polygon", "coordinates": [_square(x, y, side)]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    content = json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _square(x: float, y: float, side: float) -> list[list[float]]:
    """The corners of a tile, the first one again at the end; whole numbers are written as such."""
    left, top, right, bottom = (int(v) if float(v).is_integer() else v for v in (x, y, x + side, y + side))
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
