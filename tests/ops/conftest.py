"""What holds for all tests of operators: poisoned memory, and a quick interpreter of Triton."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill memory that is not initialized with NaN, or the largest integer, so that reading it shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def patch_the_interpreter_once() -> Iterator[None]:
    """Triton's interpreter patches its whole language at every call of a function by a kernel; once a launch will do.

    That was two fifths of the time of the kernels' tests. Releases of Triton that do it otherwise are left alone.
    """
    # Not imported at the top, because the interpreter must be chosen before.
    from disentangled_mil.ops._triton_runtime import available, interpreted

    interpreter = import_module("triton.runtime.interpreter") if available() and interpreted() else None
    if not hasattr(interpreter, "_LangPatchScope"):
        yield
        return
    original, patched = interpreter._patch_lang, set[int]()

    def patch_once(function: Any) -> Any:
        namespace, launch = id(function.__globals__), not patched
        if namespace in patched:
            return interpreter._LangPatchScope()
        patched.add(namespace)
        scope = original(function)
        if launch:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield
