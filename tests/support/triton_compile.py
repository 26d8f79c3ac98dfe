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


class Launch(NamedTuple):
    """How a kernel is launched.

    ``signature`` gives the type of every argument, in the order of the kernel: ``"*fp32"``, ``"i32"``, ``"fp32"``, and
    ``"constexpr"`` for those whose values ``constexprs`` holds. Options are such as ``num_warps``.
    """

    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """What a compiled kernel needs of the machine."""

    shared: int  # bytes of shared memory per program
    registers: int  # per thread
    stack: int  # bytes of memory per thread, where registers did not suffice


def compile_kernels(module: str, launches: Mapping[str, Launch], capability: int) -> dict[str, Compiled]:
    """Compile kernels of the importable ``module``, as they are launched, down to machine code.

    It takes a process of its own: what was imported under ``TRITON_INTERPRET`` cannot be compiled.
    """
    done = subprocess.run(
        [sys.executable, __file__, json.dumps([module, launches, capability])],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{', '.join(launches)} of {module} for capability {capability}:\n{done.stderr}")
    return {kernel: Compiled(*usage) for kernel, usage in json.loads(done.stdout).items()}


def _compile(kernel: Any, launch: Launch, capability: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Tensors from torch begin at multiples of 16 bytes; a launch sees that and loads wider.
    kinds = enumerate(launch.signature.values())
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in kinds if kind.startswith("*")}
    source = ASTSource(kernel, launch.signature, launch.constexprs, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
        code.write(compiled.asm["cubin"])
        code.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", code.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    return Compiled(compiled.metadata.shared, registers, stack)


def _compile_all(module: str, launches: Mapping[str, list[Any]], capability: int) -> dict[str, Compiled]:
    kernels = vars(import_module(module))
    return {name: _compile(kernels[name], Launch(*launch), capability) for name, launch in launches.items()}


if __name__ == "__main__":
    print(json.dumps(_compile_all(*json.loads(sys.argv[1]))))
