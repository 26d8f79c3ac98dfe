"""The maps of several magnifications on one map, at the finest tiles."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._checks import check_mapping, check_texts, check_type
from ..bags import pair_magnifications
from .tile_map import TileMap


def combine_maps(maps: Mapping[str, TileMap], *, shared: Sequence[str] | None = None) -> TileMap:
    """Lay the maps of several magnifications of one slide on one map.

    The tiles are those of the finest magnification, and those of coarser ones in which none of them has its center. A
    tile takes over the numbers of the coarser tile in which its center lies, and their mean where such tiles overlap.

    Args:
        maps: map of every magnification, in one unit of coordinates; the tiles of each have one size.
        shared: columns that also appear as their mean over the magnifications that cover a tile; by default all that
            the maps have in common.

    Returns:
        The columns ``NAME`` of ``shared``, and ``NAME_MAGNIFICATION`` of every map; NaN where a magnification has no
        tile. The class of a tile is that of the finest magnification that covers it.

    Raises:
        ValueError: there is no map, units differ, the tiles of a map differ in size, or a column is not in all maps.

    Example:
        >>> import torch
        >>> from disentangled_mil.explain import TileMap, combine_maps
        >>> coarse = TileMap(torch.tensor([[0, 0]]), torch.tensor([2]), {"attention": torch.tensor([1.0])})
        >>> columns = {"attention": torch.tensor([3.0, 2.0])}
        >>> fine = TileMap(torch.tensor([[0, 0], [1, 0]]), torch.tensor([1, 1]), columns)
        >>> combined = combine_maps({"10x": coarse, "20x": fine})
        >>> combined.columns["attention"].tolist(), combined.columns["attention_10x"].tolist()
        ([2.0, 1.5], [1.0, 1.0])
    """
    check_mapping("maps", maps)
    for name, each in maps.items():
        check_type(f"maps[{name!r}]", each, TileMap, "a TileMap")
    if shared is not None:
        check_texts("shared", shared)
    if not maps:
        raise ValueError("maps must hold the map of at least one magnification, got none")
    for name, each in maps.items():
        if (each.size != each.size[0]).any():
            raise ValueError(f"maps[{name!r}] must have tiles of one size, got {sorted(set(each.size.tolist()))}")
    if len(units := {each.unit for each in maps.values()}) > 1:
        raise ValueError(f"maps must share the unit of their coordinates, got {' and '.join(sorted(map(str, units)))}")
    names = sorted(maps, key=lambda name: float(maps[name].size[0]))
    finest = maps[names[0]]
    common = [column for column in finest.columns if all(column in each.columns for each in maps.values())]
    if absent := [column for column in shared or () if column not in common]:
        raise ValueError(f"shared must be columns of all maps, {', '.join(common)}, got {absent[0]!r}")
    coords, size = _tiles([maps[name] for name in names])
    at_tiles = {name: _at(maps[name], coords, size) for name in names}
    columns = {
        column: torch.stack([at_tiles[name][column] for name in names]).nanmean(0)
        for column in (common if shared is None else shared)
    }
    apart = {f"{column}_{name}": at_tiles[name][column] for name in maps for column in maps[name].columns}
    labels = torch.full((len(coords),), -1)
    for name in names:
        row, tile = _pairs(maps[name], coords, size)
        own = torch.full_like(labels, -1)
        own[tile] = maps[name].labels[row]
        labels = labels.where(labels >= 0, own)
    return TileMap(coords, size, columns | apart, finest.classes, labels, finest.unit, finest.unit_um)


def _tiles(maps: Sequence[TileMap]) -> tuple[Tensor, Tensor]:
    """Corners and sides of the finest tiles, and of coarser ones that hold none; maps from the finest on."""
    coords, size = maps[0].coords.double(), maps[0].size.double()
    for each in maps[1:]:
        empty = torch.ones(len(each), dtype=torch.bool)
        for side in set(size.tolist()):
            own = coords[size == side]
            empty[pair_magnifications(each.coords, float(each.size[0]), own, side).first] = False
        coords = torch.cat([coords, each.coords[empty].double()])
        size = torch.cat([size, each.size[empty].double()])
    return coords, size


def _pairs(found: TileMap, coords: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a map and the other tiles that they cover."""
    rows, tiles = [], []
    for side in set(size.tolist()):
        own = (size == side).nonzero()[:, 0]
        pairs = pair_magnifications(found.coords, float(found.size[0]), coords[own], side)
        rows.append(pairs.first)
        tiles.append(own[pairs.second])
    return torch.cat(rows), torch.cat(tiles)


def _at(found: TileMap, coords: Tensor, size: Tensor) -> dict[str, Tensor]:
    """The columns of a map at other tiles: the mean over its tiles that cover them."""
    row, tile = _pairs(found, coords, size)
    count = torch.zeros(len(coords), dtype=torch.float64).index_add(0, tile, torch.ones(len(tile), dtype=torch.float64))
    return {
        name: torch.zeros_like(count).index_add(0, tile, values.double()[row]) / count
        for name, values in found.columns.items()
    }
