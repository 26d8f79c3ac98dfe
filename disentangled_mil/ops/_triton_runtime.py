"""Whether there is Triton, and what needs it, imported when it is asked for: the package itself loads without it."""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Found out once, so that torch.compile reads constants.
_AVAILABLE = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def available() -> bool:
    """Whether Triton is installed."""
    return _AVAILABLE


def interpreted() -> bool:
    """Whether Triton is to run kernels in its interpreter, which takes tensors of the CPU.

    That is for tests: ``TRITON_INTERPRET=1`` must be set before the package is imported.
    """
    return _INTERPRETED


def load(module: str) -> ModuleType:
    """A module that imports Triton.

    Raises:
        RuntimeError: Triton is not installed.
    """
    if not available():
        raise RuntimeError('backend="triton" needs the package triton, which is not installed: pip install triton')
    return import_module(module)
