"""The extra to install, where a package that it brings is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """Name the extra in the error of an import that fails because its package is not installed.

    Args:
        extra: name of the extra.

    Raises:
        ModuleNotFoundError: a package is missing; the message names package and extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if "pip install" in str(error) or (error.name or "").startswith("disentangled_mil"):
            raise
        raise ModuleNotFoundError(
            f"{error.name} is not installed; install the extra: pip install 'disentangled_mil[{extra}]'",
            name=error.name,
        ) from error
