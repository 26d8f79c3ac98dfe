"""Whether Triton is installed, and modules that need it, which are imported at their first use."""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Constants, because torch.compile cannot trace how they are determined.
_AVAILABLE = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def available() -> bool:
    """Whether Triton is installed."""
    return _AVAILABLE


def interpreted() -> bool:
    """Whether Triton is to run kernels in its interpreter, which takes tensors of the CPU.

    Returns:
        The answer. Tests set ``TRITON_INTERPRET=1`` before they import the package.
    """
    return _INTERPRETED


def load(module: str) -> ModuleType:
    """A module that imports Triton.

    Args:
        module: dotted name of the module.

    Returns:
        The imported module.

    Raises:
        RuntimeError: Triton is not installed.
    """
    if not available():
        raise RuntimeError('backend="triton" needs the package triton, which is not installed: pip install triton')
    return import_module(module)
