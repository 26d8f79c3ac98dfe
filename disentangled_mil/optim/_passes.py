"""How many backward passes the gradients of some parameters are the sum of."""

import weakref
from collections.abc import Iterable
from functools import partial

from torch import Tensor


class BackwardPasses:
    """Counts the backward passes that reached parameters since their gradients were cleared.

    Args:
        parameters: parameters; gradients that are set by hand are not counted.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = tuple(parameters)
        self._watch()

    @property
    def number(self) -> int:
        """The largest number among the parameters that have a gradient."""
        held = (count for p, count in zip(self._parameters, self._counts, strict=True) if p.grad is not None)
        return max(held, default=0)

    def clear(self) -> None:
        """Begin anew, because the gradients were set to zero."""
        self._counts = [0] * len(self._parameters)

    def _watch(self) -> None:
        self.clear()
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                parameter.register_hook(partial(_arrived, weakref.ref(self), index))  # type: ignore[no-untyped-call]

    def _count(self, index: int) -> None:
        fresh = self._parameters[index].grad is None
        self._counts[index] = 1 if fresh else self._counts[index] + 1

    def __getstate__(self) -> tuple[Tensor, ...]:
        return self._parameters

    def __setstate__(self, parameters: tuple[Tensor, ...]) -> None:
        # Copies of parameters have no hooks.
        self._parameters = parameters
        self._watch()


def _arrived(passes: "weakref.ref[BackwardPasses]", index: int, gradient: Tensor) -> None:
    """A gradient is about to be added to that of a parameter, which must not keep the counter alive."""
    counter = passes()
    if counter is not None:
        counter._count(index)
