"""Reading ahead: threads make the next items while the present one is in use.

PyTorch's operators and file reads release Python's lock, so threads suffice. Processes of a ``DataLoader`` could not
share the bags that :class:`~.train.bag_cache.BagCache` keeps.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def read_ahead(
    make: Callable[[Item], Made], items: Iterable[Item], *, threads: int = 1, ahead: int = 1
) -> Generator[Made, None, None]:
    """What a function makes of every item, in order, and made before its use.

    The threads end with the last result, or when the generator is closed.

    Args:
        make: function, which runs in threads of its own.
        items: arguments of the function.
        threads: number of threads.
        ahead: number of results that are made or waiting, beside the one in use.

    Yields:
        The results. An exception of the function is raised where its result would come.

    Example:
        >>> from disentangled_mil._read_ahead import read_ahead
        >>> list(read_ahead(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="read-ahead")
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(make, item))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
