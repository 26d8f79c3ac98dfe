"""Plain formulas in place of the registered operators, for exporters that know PyTorch's own operators only.

Each formula has the results of its operator but for rounding, for any number of bags and tokens, and without a branch
that depends on values. Distances between tokens and attention weights are dense matrices. The formulas are for
prediction: none drops a weight, and no second formula of a gradient is needed.
"""

from collections.abc import Callable, Iterable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .attention import plain_attention
from .density_peaks import plain_density_peaks
from .matching import costs
from .position_bias import MLPBias

MOST_PROTOTYPES = 5  # All orders of the prototypes are compared, 120 for five.


class PlainOperators(TorchFunctionMode):
    """A context in which calls of the registered operators run plain formulas instead.

    In an exported program, stable sorts become sorts, because the exporter knows no others. Those of ONNX are stable.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import density_peaks
        >>> from disentangled_mil.ops.plain import PlainOperators
        >>> with PlainOperators():
        ...     density_peaks(torch.tensor([[[0.0], [1.0], [9.0]]]), 2).assignment
        tensor([[1, 0, 0]])
    """

    def __init__(self) -> None:
        super().__init__()
        own = torch.ops.disentangled_mil
        self.formulas: dict[Any, Callable[..., Any]] = {
            own.biased_attention_streaming.default: plain_attention,
            own.depthwise_windows.default: _windows,
            own.network_biases.default: _network_biases,
            own.density_peaks.default: plain_density_peaks,
            own.match_prototypes.default: _match_prototypes,
        }

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, or the formula in its place."""
        with self:  # A formula sorts as well.
            if function in self.formulas:
                return self.formulas[function](*args, **(kwargs or {}))
        given = dict(kwargs or {})
        if torch.compiler.is_compiling():
            given.pop("stable", None)
        return function(*args, **given)


def _windows(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    batch, groups, count, channels = cells.shape
    rows = torch.nn.functional.pad(cells, (0, 0, 0, 1)).flatten(0, 2)  # a row of zeros stands for "outside"
    first = (count + 1) * torch.arange(batch * groups, device=cells.device).view(batch, groups, 1, 1)
    total = cells.new_zeros(batch, groups, window.shape[1], channels)
    for row in range(kernel.shape[0]):
        index = window[:, None, :, row] + first  # [B, G, J, S]
        total = total + (torch.nn.functional.embedding(index, rows) * kernel[row]).sum(3)
    return total


def _network_biases(*flat: Any) -> Tensor:
    *network, displacement = flat
    return MLPBias(*network)(displacement)


def _match_prototypes(prototypes: Tensor, subspaces: Tensor, present: Tensor, metric: str) -> Tensor:
    cost = costs(prototypes.double(), subspaces.double(), present, metric)  # [B, S, K]
    least: Tensor | None = None
    choice: list[Any] = []
    for order in permutations(range(prototypes.shape[1]), subspaces.shape[1]):
        total = torch.stack([cost[:, s, k] for s, k in enumerate(order)]).sum(0)  # [B]
        if least is None:
            least, choice = total, [torch.full_like(total, k, dtype=torch.int64) for k in order]
        else:
            better = total < least
            least = torch.where(better, total, least)
            choice = [torch.where(better, k, old) for k, old in zip(order, choice, strict=True)]
    return torch.stack(choice, 1)
