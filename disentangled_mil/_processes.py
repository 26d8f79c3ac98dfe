"""What several processes have in common: a batch that they share, and one of them that prints."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING or dist.is_available():
    from torch.distributed import ProcessGroup

    Group: TypeAlias = ProcessGroup
else:
    Group: TypeAlias = Any  # torch was built without processes.


@contextmanager
def silent(other: bool) -> Iterator[None]:
    """Print nothing inside the block, in a process that is another one than the first."""
    if not other:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def several(group: Group | None) -> bool:
    """Whether a group has more than one process; all processes by default."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def of_all(numbers: Sequence[int], device: torch.device, group: Group | None) -> list[list[int]]:
    """The same few numbers of every process, in the order of the processes."""
    own = torch.tensor(list(numbers), device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    return [one.tolist() for one in every]


def gather_rows(rows: Tensor, counts: Sequence[int], group: Group | None) -> Tensor:
    """The rows of all processes in their order, with gradients [n, F] -> [sum of counts, F].

    The gradient of a row is the sum of the gradients that all processes have for it.

    Args:
        rows: rows of this process.
        counts: number of rows of every process.
        group: processes; all by default.

    Returns:
        All rows.
    """
    before = sum(counts[: dist.get_rank(group)])
    # Other rows are zeros here, so a sum joins them without rounding.
    placed = torch.nn.functional.pad(rows, (0, 0, before, sum(counts) - before - len(rows)))
    return cast(Tensor, _Sum.apply(placed, group))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group | None) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient.contiguous(), ctx.group), None  # type: ignore[no-untyped-call]
