"""Cases, and the candidates that do the work of a case."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = dict[str, Tensor]
Work: TypeAlias = Callable[[], Outputs]
Prepare: TypeAlias = Callable[[int, torch.device], Work]


class Unavailable(Exception):
    """A candidate cannot run here; the message names the missing library or device."""


@dataclass(frozen=True)
class Candidate:
    """One way to do the work of a case.

    Attributes:
        prepare: function that makes the inputs of a size on a device, and returns the work. The work returns values
            and gradients.
        oracle: name of the candidate with which this one must agree. The reference has none, and neither has a
            yardstick, which does other work of known cost.
        tolerance: largest deviation from the oracle, as a share of each tensor's largest entry. Some gradients are
            sums of millions of rounded terms; the dense ones deviate by 1e-3 from their values in float64.
        approximate: whether to compare values only, because an approximation has a gradient of its own.
        proof: function that replaces ``prepare`` in the comparison where randomness would make candidates differ.
        memory: function that estimates the peak memory in bytes; sizes that do not fit are left out.
        most_on_cpu: largest number of tokens that does not take too long on a CPU.
        cost: function that counts the operations of the result and the bytes that must be moved for it.
    """

    prepare: Prepare
    oracle: str | None = None
    tolerance: float = 3e-3
    approximate: bool = False
    proof: Prepare | None = None
    memory: Callable[[int], float] | None = None
    most_on_cpu: int | None = None
    cost: Callable[[int], tuple[float, float]] | None = None

    def fits(self, size: int, limit: float) -> bool:
        """Tell whether a size is expected to stay below a limit of memory in bytes."""
        return self.memory is None or self.memory(size) <= limit


@dataclass(frozen=True, eq=False)
class Case:
    """Work that several candidates do in different ways.

    Attributes:
        about: description for ``--list``, one line.
        sizes: numbers of tokens that are measured by default.
        candidates: candidates by name; the one called ``"reference"`` is what ratios refer to.
        summaries: functions that compute further ratios from the seconds of the candidates.
        small: number of tokens of the warm-up.
    """

    about: str
    sizes: tuple[int, ...]
    candidates: Mapping[str, Candidate]
    summaries: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    small: int = 64

    def compared_at(self, size: int, limit: float) -> int:
        """Choose the size of the comparison: this one, or the largest one at which all candidates fit."""
        fitting = [
            s for s in (self.small, *self.sizes, size) if all(c.fits(s, limit) for c in self.candidates.values())
        ]
        return size if size in fitting else max(fitting)
