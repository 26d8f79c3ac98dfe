"""Reading ahead: a thread makes the next batch while the present one is in use.

PyTorch's operators and file reads release Python's lock, so one thread suffices. Processes of a ``DataLoader`` could
not share the bags that :class:`~.bag_cache.BagCache` keeps.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def read_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What a function makes of every item, in order, one ahead of its use.

    Args:
        make: function, which runs in a thread of its own.
        items: arguments of the function.

    Yields:
        The results. An exception of the function is raised where its result would come.

    Example:
        >>> from disentangled_mil.train.read_ahead import read_ahead
        >>> list(read_ahead(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        coming: Future[Made] | None = None
        for item in items:
            ready, coming = coming, thread.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
