"""The number of threads that serves a training or a prediction.

PyTorch divides the work of every operator among threads, which wait for each other at its end. The operators of small
bags are too short for that to pay, and where another program uses a core the waiting multiplies. So ``"auto"`` takes
one thread per 10,000 patches of a batch, at least one and at most PyTorch's own number. On two cores, the second thread
did not make smaller batches faster; machines with more cores were not measured. The last digits of results depend on
the number.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch

from .._checks import check_choice, check_count

Threads: TypeAlias = int | Literal["auto"] | None

PATCHES_PER_THREAD = 10_000
"""Patches of a batch, over all samples and magnifications, for which ``"auto"`` takes a thread."""


@contextmanager
def using_threads(threads: Threads, sizes: Sequence[int], batch_size: int) -> Iterator[int]:
    """Set PyTorch's number of threads, and restore it at the end.

    Args:
        threads: number of threads; ``"auto"`` to choose by the size of a batch; None to leave it as it is.
        sizes: number of patches of every sample, over all magnifications.
        batch_size: samples in a batch.

    Yields:
        The number of threads in use.

    Raises:
        TypeError: the number is no integer.
        ValueError: the number is less than 1, or another word than ``"auto"``.

    Example:
        >>> with using_threads("auto", sizes=[200, 300], batch_size=16) as used:
        ...     used
        1
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(_number(threads, before, sizes, batch_size))
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _number(threads: Threads, before: int, sizes: Sequence[int], batch_size: int) -> int:
    """The number of threads to use."""
    if threads is None:
        return before
    if isinstance(threads, str):
        check_choice("threads", threads, ("auto",))
        patches = int(statistics.median(sizes) * batch_size)
        return min(max(1, patches // PATCHES_PER_THREAD), before)
    check_count("threads", threads)
    return threads
