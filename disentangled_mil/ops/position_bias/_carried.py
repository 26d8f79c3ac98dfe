"""Position biases as the arguments of an operator."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ._network import MLPBias
from ._table import BiasTable

Bias: TypeAlias = MLPBias | BiasTable | Callable[[Tensor], Tensor] | None


class CarriedBias(NamedTuple):
    """A position bias whose tensors are in a list, because operators take no optional values of several kinds.

    Attributes:
        kind: ``"none"``, ``"network"`` or ``"table"``.
        tensors: tensors of the network or of the table.
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

    def unpacked(self) -> MLPBias | BiasTable | None:
        """The opposite of :meth:`of`."""
        if self.kind == "none":
            return None
        return MLPBias(*self.tensors) if self.kind == "network" else BiasTable(self.tensors[0], self.reach)
