"""Availability of Triton. Modules with kernels import it, so they are loaded at their first use.

The package itself loads without Triton.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Constants, which torch.compile can read.
_AVAILABLE = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def available() -> bool:
    """Whether Triton is installed."""
    return _AVAILABLE


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors of the CPU.

    Tests use it. ``TRITON_INTERPRET=1`` must be set before the package is imported.

    Returns:
        True if the variable was set.
    """
    return _INTERPRETED


def load(module: str) -> ModuleType:
    """Import a module that imports Triton.

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
