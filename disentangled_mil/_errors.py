"""The error of every reader: a file is refused, and the error knows the file and the key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast

Reader = TypeVar("Reader", bound=Callable[..., Any])


class FileError(ValueError):
    """The content of a file is refused; the message names the file, the requirement and what came.

    Every reader of the package raises it, or a subclass, so that a program may catch one class. A file that is absent
    or may not be read is an :class:`OSError`, as everywhere in Python.

    Args:
        message: text of the error.
        file: file that is refused; None while a part of its content is read alone.
        key: place in the file, such as ``"task.class_weight"``; None where the file has no keys, or all of it is
            refused.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from disentangled_mil import FileError
        >>> from disentangled_mil.data.cohort_file import read_description
        >>> path = Path(tempfile.mkdtemp()) / "cohort.toml"
        >>> _ = path.write_text("[clinical")
        >>> try:
        ...     read_description(path)
        ... except FileError as error:
        ...     print(error.file.name, error.key)
        cohort.toml None
    """

    def __init__(self, message: str, file: str | Path | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.file = None if file is None else Path(file)
        self.key = key


@contextmanager
def reading(
    file: str | Path | None = None, key: str | None = None, kind: type[FileError] = FileError
) -> Iterator[None]:
    """Let every ``ValueError`` of a block be a :class:`FileError` that knows the file and the key.

    Blocks may be nested. An error that knows its file is left as it is.

    Args:
        file: file that is read; None inside of a part whose file is known further out.
        key: key whose value is read. It stands before the keys of inner blocks.
        kind: class of the error for a plain ``ValueError``; a :class:`FileError` keeps its own.

    Raises:
        FileError: the block raised a ``ValueError``. The message begins with what the inner one did not name.

    Example:
        >>> from disentangled_mil._errors import FileError, reading
        >>> try:
        ...     with reading("model.json"), reading(key="task"), reading(key="classes"):
        ...         raise ValueError("must be a list, got 3")
        ... except FileError as error:
        ...     print(error, "|", error.key)
        model.json: task classes must be a list, got 3 | task.classes
    """
    try:
        yield
    except ValueError as error:
        text, inner = str(error), getattr(error, "key", None)
        if getattr(error, "file", None) is not None:
            raise
        if key is not None:
            text, inner = f"{key} {text}", f"{key}.{inner}" if inner else key
        if file is not None and str(file) not in text:
            text = f"{file}: {text}"
        raise (type(error) if isinstance(error, FileError) else kind)(text, file, inner) from error


def reads_file(function: Reader) -> Reader:
    """Let every ``ValueError`` of a function be a :class:`FileError` that knows the file.

    Args:
        function: function whose first argument is the file.

    Returns:
        The function, whose errors know the file.
    """
    first = next(iter(signature(function).parameters))

    @wraps(function)
    def reader(*arguments: Any, **options: Any) -> Any:
        with reading(arguments[0] if arguments else options.get(first)):
            return function(*arguments, **options)

    return cast(Reader, reader)
