"""Run one command: its warnings and errors are lines, and its end is an exit status."""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .._exit_status import failure_status, no_work_yet
from .._processes import silent
from .commands import train
from .parser import command_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the input are one line.

    Args:
        arguments: arguments of the command line; by default those of the process.

    Returns:
        The exit status. 0: all is done. 2: the input was refused before anything was computed; mend it and start again.
        1: something failed on the way, or slides were left out; what is finished is kept. 130: interrupted.
    """
    with silent(_processes() > 1 and os.environ.get("RANK", "0") != "0"):
        options = command_parser().parse_args(arguments)
    no_work_yet()
    try:
        with warnings.catch_warnings(), _together(options):
            warnings.showwarning = _show_warning
            return options.run(options) or 0
    except ModuleNotFoundError as error:
        extra = "" if "pip install" in str(error) else "; install the extra: pip install 'disentangled_mil[train]'"
        print(f"error: {error}{extra}", file=sys.stderr)
        return failure_status()
    except PermissionError as error:
        place = f"{error.filename}: no permission" if error.filename else str(error)
        print(f"error: {place}; give yourself access, e.g. by chmod u+rwX", file=sys.stderr)
        return failure_status()
    except OSError as error:
        # Those of the package are whole sentences; those of Python have a number.
        text = f"{error.filename}: {error.strerror}" if error.errno and error.filename else str(error)
        print(f"error: {text}", file=sys.stderr)
        return failure_status()
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return failure_status()
    except KeyboardInterrupt as error:
        print(f"\ninterrupted; {error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 130


def _processes() -> int:
    """The number of processes that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def _together(options: Namespace) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, for the command that trains in several."""
    if _processes() == 1:
        yield
        return
    from ..train.processes import together

    with together():
        if options.run is not train.run:
            raise ValueError("several processes can run the command train only, so start others without torchrun")
        yield


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning of the package as one line, and others with their place in the code."""
    text = f"warning: {message}\n" if category is UserWarning else warnings.formatwarning(message, category, *place[:2])
    print(text, file=sys.stderr, end="")
