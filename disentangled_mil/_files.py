"""Files appear whole or not at all, replace nothing that is read, and JSON files hold an object."""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from zlib import crc32

from ._errors import FileError


@contextmanager
def replacing(path: str | Path, *, exclusive: bool = False, name: str | Path | None = None) -> Iterator[Path]:
    """Write a file through a temporary one beside it, which takes its place if the block ends without an error.

    The content is on the disk before the file takes its place, and the new name is on the disk at the end. So a loss of
    power leaves the old content or the new one.

    Args:
        path: file to write; its old content stays until the new content is complete.
        exclusive: flag that makes a file that is there, or that another process writes first, an error; it stays. On a
            file system without hard links, a file that another process writes at the same moment may be replaced.
        name: name of the file in errors; by default ``path``.

    Yields:
        The temporary path to write to.

    Raises:
        FileExistsError: under ``exclusive``, the file is there.
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
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: must be a file in a folder that is there; make {path.parent} first")
    # Processes of several computers may share a folder. A digest leaves room for long names of files.
    host = crc32(socket.gethostname().encode())
    temporary = path.with_name(f".{path.name}.{host:08x}.{os.getpid()}.tmp")
    try:
        yield temporary
        _synchronize(temporary)
        if exclusive:
            _link(temporary, path)
            _synchronize(path.parent)
        else:
            rename(temporary, path)
    except OSError as error:
        # The error of a full disk names no file, and that of a read-only folder the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(name or path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def rename(path: Path, target: Path) -> None:
    """Give a file the name of another one, which it replaces; the name is on the disk at the end."""
    os.replace(path, target)
    _synchronize(target.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name unless it is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # The file system has no hard links.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(temporary, path)


def _synchronize(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folder.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep names themselves and refuse this.
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def check_outputs(
    outputs: Iterable[str | Path],
    inputs: Iterable[str | Path],
    *,
    overwrite: bool,
    what: str = "file",
    remedy: str | None = "--overwrite",
) -> None:
    """Refuse to write over what is read, and, without ``overwrite``, over what is there.

    Files are compared by identity: a link, or another spelling of a path, is the same file.

    Args:
        outputs: files to be written.
        inputs: files that are read. Nothing may be written into a folder among them, such as the ``.zarr`` of a slide.
        overwrite: flag that allows to replace other files.
        what: name of an output in errors.
        remedy: words of the error that say how to allow it; None where nothing does.

    Raises:
        FileExistsError: an output is there.
        ValueError: an output is an input, or lies in one.

    Example:
        >>> import tempfile
        >>> table = Path(tempfile.mkdtemp()) / "patients.csv"
        >>> table.touch()
        >>> check_outputs([table.with_name("new.csv")], [table], overwrite=False)
        >>> check_outputs([table], [table], overwrite=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: .../patients.csv: must be another file than .../patients.csv, which is read
    """
    read = {identity: path for path in map(Path, inputs) if (identity := _identity(path))}
    for output in map(Path, outputs):
        for place in (output, *output.resolve().parents):
            same = read.get(_identity(place) or (0, 0))
            if same is not None:
                raise ValueError(f"{output}: must be another file than {same}, which is read")
        if not overwrite and os.path.lexists(output):
            replace = "" if remedy is None else f", or replace it by {remedy}"
            raise FileExistsError(f"{output}: is there already; name another {what}{replace}")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file or folder, which all its names share; None where there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


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


def json_digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON values, whatever the order of their keys.

    Args:
        content: values.

    Returns:
        The digest, in hexadecimal.

    Example:
        >>> json_digest({"a": 1, "b": [0.5]}) == json_digest({"b": [0.5], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, requirement: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: file.
        requirement: words of the errors that say what the file must do.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: the file holds no JSON object.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "run.json"
        >>> _ = target.write_text('{"task": "grading"}')
        >>> read_json(target, "describe the run")
        {'task': 'grading'}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: must {requirement}: {error}", path) from error
    if not isinstance(content, dict):
        raise FileError(f"{path}: must {requirement}, got {content!r:.200}", path)
    return content
