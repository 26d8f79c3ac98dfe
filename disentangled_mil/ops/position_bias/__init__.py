"""Position biases: functions of the displacement between a query and a key that are added to attention scores.

The bias of a query at q and a key at k is f(q - k), where f is a network of two hidden layers of F ReLUs
(:class:`MLPBias`, exact) or a table of R x R values that is read bilinearly (:class:`BiasTable`). Attention asks for
the biases of one tile of t queries and all J keys of each of G groups at a time (:class:`TiledBias`,
:class:`BiasTile`), adds them to its scores, and hands back their gradient; the matrix of N x J biases never exists. A
tile of a network holds its hidden layers, t G J (2 F) numbers, and costs t G J (F^2 + 4 F) multiplications; in the
backward pass both are computed again, and the gradient costs twice as much. A tile of a table costs four reads for each
pair, and four additions to the gradient of the table in the backward pass.

On a CPU, large attentions read a network from a table too. They do so only in cells where the network is affine, so its
values stay exact up to rounding. It is evaluated at the nodes, and for pairs in all other cells (``_piecewise.py``).
"""

from ._carried import Bias, CarriedBias
from ._checks import check_bias
from ._choice import tiled
from ._network import MLPBias
from ._table import BiasTable
from ._tiled import BiasTile, BiasWanted, TiledBias
from ._values import network_biases

__all__ = [
    "Bias",
    "BiasTable",
    "BiasTile",
    "BiasWanted",
    "CarriedBias",
    "MLPBias",
    "TiledBias",
    "check_bias",
    "network_biases",
    "tiled",
]
