"""Position biases as the arguments of an operator."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ._network import MLPBias
from ._table import BiasTable

Bias: TypeAlias = MLPBias | BiasTable | Callable[[Tensor], Tensor] | None


class CarriedBias(NamedTuple):
    """One form for every kind of bias: its kind, its tensors and its reach.

    Operators have fixed argument types, so they cannot take an :class:`MLPBias` or a :class:`BiasTable`.

    Attributes:
        kind: ``"none"``, ``"network"`` or ``"table"``.
        tensors: the six parameters of the network, or the values of the table.
        reach: reach of the table; 1 for other kinds.
    """

    kind: str
    tensors: list[Tensor]
    reach: float

    @classmethod
    def of(cls, bias: MLPBias | BiasTable | None) -> "CarriedBias":
        """Pack a bias."""
        if bias is None:
            return cls("none", [], 1.0)
        if isinstance(bias, MLPBias):
            return cls("network", list(bias), 1.0)
        return cls("table", [bias.values], bias.reach)

    @property
    def network(self) -> MLPBias | None:
        """The network; None for another kind."""
        return MLPBias(*self.tensors) if self.kind == "network" else None

    @property
    def table(self) -> BiasTable | None:
        """The table; None for another kind."""
        return BiasTable(self.tensors[0], self.reach) if self.kind == "table" else None

    def unpacked(self) -> MLPBias | BiasTable | None:
        """The opposite of :meth:`of`."""
        return self.network or self.table
