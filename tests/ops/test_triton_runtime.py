"""Finding out about Triton without importing it."""

import os
import runpy
import subprocess
import sys

import pytest

from disentangled_mil.ops import _triton_runtime as runtime


def run(program: str, **environment: str) -> str:
    """What a fresh process prints, with some variables of its environment changed."""
    changed = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", program], env=changed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_to_ask_whether_triton_is_there_does_not_import_it() -> None:
    program = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "from disentangled_mil.ops import _triton_runtime as runtime\n"
        "runtime.available(), runtime.interpreted()\n"
        "print(before or 'triton' not in sys.modules)"
    )
    assert run(program) == "True"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_interpreter_is_that_of_the_environment_and_triton_agrees(value: str, expected: bool) -> None:
    knobs = pytest.importorskip("triton.knobs", reason="needs Triton 3.4 or later")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", value)
        assert runpy.run_path(runtime.__file__)["interpreted"]() is expected
        assert knobs.runtime.interpret is expected


def test_kernels_are_not_interpreted_unless_asked_for() -> None:
    assert run("from disentangled_mil.ops import _triton_runtime as r; print(r.interpreted())") == "False"


def test_a_module_is_loaded_only_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available", lambda: True)
    assert runtime.load("os.path") is os.path
    monkeypatch.setattr(runtime, "available", lambda: False)
    message = 'backend="triton" needs the package triton, which is not installed: pip install triton'
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        runtime.load("os.path")
