"""Which operators of the package something calls."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Call = tuple[Any, tuple[Any, ...]]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "disentangled_mil":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def calls(action: Callable[[], object]) -> list[Call]:
    """The package's operators that an action calls, each with arguments for ``opcheck``."""
    with _Recorder() as recorder:
        action()
    # The backward operators have no gradient of their own, which opcheck would ask for.
    return [(func, _copy(args, "backward" not in func._opname)) for func, args in recorder.calls]


def _copy(value: Any, trained: bool) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(trained and value.requires_grad)
    return type(value)(_copy(part, trained) for part in value) if isinstance(value, (list, tuple)) else value
