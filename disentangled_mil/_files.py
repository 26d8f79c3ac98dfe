"""Files appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file through a temporary one beside it, which takes its place if the block ends without an error.

    Args:
        path: file to write; its old content stays until the new content is complete.

    Yields:
        The temporary path to write to.

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
        # The error of a full disk names no file, and that of a read-only folder the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files that killed processes left beside ``path``; no process may be writing it.

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
