"""Compile Triton kernels for a GPU that need not be there, and say what they ask of it."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple


class Compiled(NamedTuple):
    """What a compiled kernel needs of the machine."""

    shared: int  # bytes of shared memory per program
    registers: int  # per thread
    stack: int  # bytes of memory per thread, where registers did not suffice


def compile_kernel(
    module: str,
    kernel: str,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    capability: int = 90,
    **options: Any,
) -> Compiled:
    """Compile ``kernel`` of the importable ``module``, down to machine code.

    ``signature`` gives the type of every argument, in the order of the kernel: ``"*fp32"``, ``"i32"``, ``"fp32"``, and
    ``"constexpr"`` for those whose values ``constexprs`` holds. Options are those of a launch, such as ``num_warps``.

    It takes a process of its own: what was imported under ``TRITON_INTERPRET`` cannot be compiled.
    """
    order = json.dumps([module, kernel, dict(signature), dict(constexprs), capability, options])
    done = subprocess.run(
        [sys.executable, __file__, order],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{kernel} of {module} does not compile for capability {capability}:\n{done.stderr}")
    return Compiled(*json.loads(done.stdout))


def _compile(
    module: str,
    kernel: str,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    options: dict[str, Any],
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Tensors from torch begin at multiples of 16 bytes; a launch sees that and loads wider.
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(getattr(import_module(module), kernel), signature, constexprs, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
        code.write(compiled.asm["cubin"])
        code.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", code.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return Compiled(compiled.metadata.shared, registers, stack)


if __name__ == "__main__":
    print(json.dumps(_compile(*json.loads(sys.argv[1]))))
