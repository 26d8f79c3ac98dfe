"""Which of the confidences given belong to the present gradients.

Calls of ``accumulate`` and backward passes are kept in their order. A run is a series of backward passes without a call
in between, which a micro-batch makes. Gaps are the calls before, between and after runs.

* If the last event is a backward pass, calls come before it. A run takes the last call of the gap before it.
* Otherwise calls come after it. A run takes the first calls of the gap after it, at most one for each of its passes.

All other calls count for nothing, such as those of a validation. Neither do those of runs whose gradients were cleared
before a later run.
"""

import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

Confidence = dict[str, Tensor]
# Micro-batches of a step; calls from a validation without end must not fill the memory.
_MOST = 10_000


class Given(NamedTuple):
    """Confidences that count.

    Attributes:
        confidence: one scalar per subspace.
        cleared: scalars; where one is True, the gradients were cleared later, and the confidences count for nothing.
    """

    confidence: Confidence
    cleared: list[Tensor]

    def of(self, name: str) -> Tensor:
        """The confidence of a subspace; 0 if the gradients were cleared."""
        value = self.confidence[name]
        for flag in self.cleared:
            value = torch.where(flag.to(value.device), 0.0, value)
        return value


class BackwardPasses:
    """Confidences in the order of the backward passes that reach some parameters.

    Args:
        parameters: parameters; gradients that are set by hand are not seen.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = tuple(parameters)
        self._gaps: list[deque[Confidence]] = []
        self.forget()
        self._watch()

    def give(self, confidence: Confidence) -> None:
        """Add confidences."""
        self._gaps[-1].append(confidence)

    def all_given(self) -> tuple[Confidence, ...]:
        """All confidences since the last step."""
        return tuple(chain.from_iterable(self._gaps))

    def forget(self, known: Iterable[Confidence] = ()) -> None:
        """Begin anew, with confidences that are known."""
        self._gaps = [deque(known, maxlen=_MOST)]
        self.clear()

    def clear(self) -> None:
        """Go on without the backward passes so far, because the gradients were cleared."""
        self._gaps = self._gaps[-1:]
        self._runs: list[_Run] = []
        self._passes, self._counts = 0, [0] * len(self._parameters)

    def counted(self, *, without_last: bool) -> list[Given]:
        """The confidences that belong to the present gradients.

        Args:
            without_last: flag that says that the last backward pass has confidences of its own.

        Returns:
            The confidences; all of them where no backward pass made the gradients.
        """
        if not self._runs or all(parameter.grad is None for parameter in self._parameters):
            return [Given(confidence, []) for confidence in self.all_given()]
        runs, gaps = [(run, run.passes) for run in self._runs], [list(gap) for gap in self._gaps]
        if without_last and runs[-1][1] > 1:
            runs[-1] = runs[-1][0], runs[-1][1] - 1
        elif without_last:
            runs.pop()
            gaps[-2:] = [gaps[-2] + gaps[-1]]
        after = bool(gaps[-1])
        found = []
        for place, (_, passes) in enumerate(runs):
            own = gaps[place + 1][:passes] if after else gaps[place][-1:]
            later = [flag for run in self._runs[place + 1 :] if (flag := run.cleared) is not None]
            found += [Given(confidence, later) for confidence in own]
        return found

    def _watch(self) -> None:
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                parameter.register_hook(partial(_arrived, weakref.ref(self), index))  # type: ignore[no-untyped-call]

    def _count(self, index: int) -> None:
        gradient = self._parameters[index].grad
        self._counts[index] += 1
        if self._counts[index] > self._passes:
            self._begin_pass(index, fresh=gradient is None)
        if gradient is not None and len(self._runs) > 1 and self._runs[-1].passes == 1:
            self._runs[-1].finds(gradient)

    def _begin_pass(self, index: int, *, fresh: bool) -> None:
        if fresh:
            self.clear()
            self._counts[index] = 1
        self._passes += 1
        if self._runs and not self._gaps[-1]:
            self._runs[-1].passes += 1
        else:
            self._runs.append(_Run())
            self._gaps.append(deque(maxlen=_MOST))

    def __getstate__(self) -> tuple[tuple[Tensor, ...], tuple[Confidence, ...]]:
        return self._parameters, self.all_given()

    def __setstate__(self, state: tuple[tuple[Tensor, ...], tuple[Confidence, ...]]) -> None:
        # Copies of parameters have no hooks.
        self._parameters, given = state
        self.forget(given)
        self._watch()


class _Run:
    """Backward passes without confidences in between."""

    def __init__(self) -> None:
        self.passes = 1
        self._zeros: list[Tensor] = []

    def finds(self, gradient: Tensor) -> None:
        """Note whether the gradient to which the first pass adds is zero, without waiting for a device."""
        if type(gradient) is Tensor and gradient.layout == torch.strided:
            self._zeros.append(~gradient.detach().any())

    @property
    def cleared(self) -> Tensor | None:
        """Whether all gradients were zero before the first pass, as a scalar; None if that is not known."""
        if not self._zeros:
            return None
        first, *others = self._zeros
        return torch.stack([first, *(zero.to(first.device) for zero in others)]).all()


def _arrived(passes: "weakref.ref[BackwardPasses]", index: int, gradient: Tensor) -> None:
    """A gradient is about to be added to that of a parameter, which must not keep the counter alive."""
    counter = passes()
    if counter is not None:
        counter._count(index)
