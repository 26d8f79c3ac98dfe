"""The cheapest way to evaluate a position bias tile by tile."""

import torch

from ._network import MLPBias, TiledNetwork
from ._piecewise import TiledPiecewise, cells_for
from ._table import BiasTable, TiledTable
from ._tiled import TiledBias


def tiled(bias: MLPBias | BiasTable | None, dtype: torch.dtype, pairs: int) -> TiledBias | None:
    """A bias that is evaluated tile by tile.

    Args:
        bias: position bias.
        dtype: type to compute in.
        pairs: number of pairs of a query and a key in the whole batch.

    Returns:
        The bias, or None where there is none.
    """
    if bias is None:
        return None
    if isinstance(bias, BiasTable):
        return TiledTable(bias._replace(values=bias.values.to(dtype)))
    network = MLPBias(*(part.to(dtype) for part in bias))
    # On a GPU evaluating the network is quick, and products of float32 may be too coarse to tell its kinks.
    cells = cells_for(pairs, len(network.w1)) if network.w1.device.type == "cpu" else None
    return TiledNetwork(network) if cells is None else TiledPiecewise(network, cells)
