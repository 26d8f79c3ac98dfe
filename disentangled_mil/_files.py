"""Files appear whole or not at all, and JSON files hold an object."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any


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


def read_json(path: Path, requirement: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: file.
        requirement: what the file must do, for the errors.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no JSON object.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "run.json"
        >>> _ = target.write_text('{"task": "grading"}')
        >>> read_json(target, "describe the run")
        {'task': 'grading'}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must {requirement}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must {requirement}, got {content!r}")
    return content
