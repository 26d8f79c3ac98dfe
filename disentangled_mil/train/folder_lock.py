"""One process at a time works in a folder. The lock is one of the system, so it ends with its process."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .._errors import FileError
from .._files import read_json, remove_leftovers
from .checkpoint import write_json

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which leaves no file behind.

    Args:
        folder: folder, which exists.

    Raises:
        ValueError: another process holds the lock; the message names it and its computer.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder):
        ...     sorted(path.name for path in folder.iterdir())
        ['.lock', '.lock.json']
        >>> list(folder.iterdir())
        []
    """
    path, note = folder / _LOCK, folder / f"{_LOCK}.json"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder}: is in use by {_holder(note)}; wait for its end, or end it") from error
    try:
        remove_leftovers(note)  # of a process that was killed
        write_json(note, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        note.unlink(missing_ok=True)
        with suppress(PermissionError):  # Windows removes no open file.
            path.unlink(missing_ok=True)
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Check that no process holds the lock of a folder.

    Args:
        folder: folder, which need not exist.

    Raises:
        ValueError: a process holds the lock; the message names it and its computer.
    """
    if (folder / _LOCK).exists():
        with locked(folder):
            pass


def _holder(note: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        holder = read_json(note, "name a process")
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, FileError, LookupError):
        return "another process"  # which has not written its note yet
