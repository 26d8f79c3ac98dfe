"""The exit status of a command that fails: 2 while its input is checked, 1 once its work has begun."""

from contextvars import ContextVar

# Whether the running command has begun its work.
_at_work: ContextVar[bool] = ContextVar("at_work", default=False)


def no_work_yet() -> None:
    """Say that a command starts, and checks its input first."""
    _at_work.set(False)


def work_begins() -> None:
    """Say that the input is checked, so a failure from now on is no refusal of it."""
    _at_work.set(True)


def failure_status() -> int:
    """The exit status of a command that fails now.

    Returns:
        1 after :func:`work_begins`; before it 2.

    Example:
        >>> from disentangled_mil._exit_status import failure_status, no_work_yet, work_begins
        >>> no_work_yet()
        >>> failure_status()
        2
        >>> work_begins()
        >>> failure_status()
        1
    """
    return 1 if _at_work.get() else 2
