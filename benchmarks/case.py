"""What there is to measure: cases, and the candidates that do the same work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = dict[str, Tensor]
Work: TypeAlias = Callable[[], Outputs]
Prepare: TypeAlias = Callable[[int, torch.device], Work]


class Unavailable(Exception):
    """A candidate cannot run here, and why: a library that is not installed, a device that it does not know."""


@dataclass(frozen=True)
class Candidate:
    """One way to do the work of a case.

    Attributes:
        prepare: makes the inputs of a size on a device; what it returns does the work and gives values and gradients.
        oracle: the candidate whose outputs these must be; None for the reference itself and for yardsticks, which do
            some other work of known cost.
        tolerance: largest deviation from the oracle, as a share of each tensor's largest entry; some gradients are
            sums of millions of rounded terms, and the dense ones are themselves off by 1e-3 from those in float64.
        approximate: whether only the values are compared: the gradient of an approximation is its own.
        proof: what is compared instead of ``prepare``, where randomness would tell candidates apart.
        memory: estimate of the peak memory in bytes, by which sizes that do not fit are left out.
        most_on_cpu: tokens beyond which it takes too long on a CPU.
        cost: operations that the result needs, and bytes that must be moved for it, however it is computed.
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
        """Whether a size is expected to stay below a limit of memory in bytes."""
        return self.memory is None or self.memory(size) <= limit


@dataclass(frozen=True, eq=False)
class Case:
    """The same work, done by several candidates.

    Attributes:
        about: one line for ``--list``.
        sizes: tokens; measured where no others are asked for.
        candidates: by name; ratios are against the one that is called ``"reference"``.
        summaries: further ratios, from the seconds of the candidates.
        small: tokens of the warm-up.
    """

    about: str
    sizes: tuple[int, ...]
    candidates: Mapping[str, Candidate]
    summaries: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    small: int = 64

    def compared_at(self, size: int, limit: float) -> int:
        """The size at which candidates are compared: this one, or the largest at which all of them fit."""
        fitting = [
            s for s in (self.small, *self.sizes, size) if all(c.fits(s, limit) for c in self.candidates.values())
        ]
        return size if size in fitting else max(fitting)
