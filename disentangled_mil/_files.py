"""Files appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``: takes its place if the block ends well, and vanishes if it does not.

    Args:
        path: the file to write; what it held before stays until the new content is complete.

    Returns:
        The path to write to.

    Raises:
        OSError: the file cannot be written; the message names it.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file, a read-only folder the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files of ``path`` that killed processes left; nobody may be writing it.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> target.with_name(".note.txt.8570.tmp").touch()
        >>> remove_leftovers(target)
        >>> list(target.parent.iterdir())
        []
    """
    path = Path(path)
    for temporary in path.parent.glob(f".{escape(path.name)}.*[0-9].tmp"):
        temporary.unlink(missing_ok=True)
