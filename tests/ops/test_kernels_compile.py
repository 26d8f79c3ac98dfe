"""What the kernels ask of a GPU, compiled to machine code without one: shared memory that is there, and few spills."""

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.triton_compile import Compiled, Launch, compile_kernels

triton = pytest.importorskip("triton", reason="needs Triton, which is not installed")
knobs = pytest.importorskip("triton.knobs", reason="needs Triton 3.4 or later")

SHARED = 99 * 1024  # bytes that one program can have on every GPU from compute capability 8.0 on
TYPES = {
    torch.bool: "*i1",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
}
Launches = dict[str, dict[str, Any]]  # of each kernel the arguments by name, options of the launch included


class Recorder:
    """Stands for a kernel: does not run, and notes with what it is launched."""

    def __init__(self, name: str, kernel: Any, launches: Launches) -> None:
        self.name, self.arg_names, self.launches = name, kernel.arg_names, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches[self.name] = dict(zip(self.arg_names, args, strict=False)) | kwargs

        return launch


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    for name in ("ptxas", "cuobjdump"):
        try:
            getattr(knobs.nvidia, name)
        except RuntimeError:
            pytest.skip(f"needs NVIDIA's {name}, which is not installed")


@pytest.fixture
def record() -> Iterator[Callable[[str], tuple[ModuleType, Launches]]]:
    """Give the module that launches the kernels of an operator, which will not run, and a place for the launches."""
    with pytest.MonkeyPatch.context() as patch:

        def replace(operator: str) -> tuple[ModuleType, Launches]:
            launcher, kernels = (import_module(f"{operator}.{name}") for name in ("_triton", "_triton_kernels"))
            launches: Launches = {}
            recorders = SimpleNamespace(
                **{
                    name: Recorder(name, kernel, launches)
                    for name, kernel in vars(kernels).items()
                    if hasattr(kernel, "arg_names")
                }
            )
            if hasattr(launcher, "kernels"):
                patch.setattr(launcher, "kernels", recorders)
                patch.setattr(launcher, "interpreted", lambda: True)
            else:
                patch.setattr(launcher, "_kernels", lambda: recorders)
            return launcher, launches

        yield replace


def compile_all(operator: str, launches: Launches, capability: int) -> dict[str, Compiled]:
    """Every kernel as it was launched."""
    module = import_module(f"{operator}._triton_kernels")
    wanted = {}
    for kernel, given in launches.items():
        names = getattr(module, kernel).arg_names
        signature = {name: type_of(name, given[name]) for name in names}
        constants = {name: given[name] for name in names if signature[name] == "constexpr"}
        wanted[kernel] = Launch(signature, constants, {k: value for k, value in given.items() if k not in names})
    return compile_kernels(module.__name__, wanted, capability)


def type_of(name: str, value: Any) -> str:
    """The type of an argument, in Triton's words."""
    if name.isupper() or value is None:
        return "constexpr"
    return TYPES[value.dtype] if isinstance(value, Tensor) else {int: "i32", float: "fp32"}[type(value)]


def of_layers(bias: str, dtype: torch.dtype, features: int, width: int) -> list[Tensor]:
    """What ``_attend`` takes of layers like the paper's: 8 heads, each with keys of its own."""
    hidden: list[tuple[int, ...]] = [(features, 2), (features,), (features, features), (features,)]
    shapes = [*hidden, (1, features), (1,)] if bias == "network" else [(1, 129, 129)]
    scores = [
        torch.zeros(1, 8, 100, width, dtype=dtype),
        torch.zeros(1, 8, 50, width, dtype=dtype),
        torch.zeros(1, 100, 2),
        torch.zeros(1, 8, 50, 2),
        torch.ones(1, 100, dtype=torch.bool),
        torch.zeros(1, 8, 50),
        *(torch.zeros(*shape) for shape in shapes),
    ]
    return [entry.requires_grad_(entry.is_floating_point()) for entry in scores]


@pytest.mark.parametrize(
    ("bias", "dtype", "features", "width", "kept", "capability", "stack"),  # the latter as measured, and some more
    [
        ("network", torch.float32, 32, 64, False, 90, 1408),  # 32 features and 64 channels are the paper's
        ("network", torch.float16, 32, 64, True, 90, 576),
        ("network", torch.float32, 64, 64, False, 80, 3328),
        ("table", torch.float16, 32, 64, False, 90, 192),
        ("table", torch.float16, 32, 256, False, 80, 512),
    ],
)
def test_kernels_of_attention_fit_and_spill_no_more_than_was_measured(
    record: Callable[[str], tuple[ModuleType, Launches]],
    bias: str,
    dtype: torch.dtype,
    features: int,
    width: int,
    kept: bool,
    capability: int,
    stack: int,
) -> None:
    operator = "disentangled_mil.ops.attention"
    launcher, launches = record(operator)
    scores, seed = of_layers(bias, dtype, features, width), torch.zeros((), dtype=torch.int64)
    value = torch.zeros(1, 8, 50, width, dtype=dtype, requires_grad=True)
    out, mass, weights, _ = launcher._attend(scores, value, 2.0, 0.125, 0.1, seed, kept)
    (out.float().sum() + mass.square().sum() + weights.square().sum()).backward()
    compiled = compile_all(operator, launches, capability)
    assert set(compiled) == {"attend", "weigh_keys", "into_queries", "into_keys"}
    assert max(kernel.shared for kernel in compiled.values()) <= SHARED
    if not triton.__version__.startswith("3.7."):
        pytest.skip(f"spills were measured with Triton 3.7, another compiler spills otherwise: {triton.__version__}")
    assert max(kernel.stack for kernel in compiled.values()) <= stack, compiled


def test_kernels_of_density_peaks_fit_and_spill_nothing(
    record: Callable[[str], tuple[ModuleType, Launches]],
) -> None:
    operator = "disentangled_mil.ops.density_peaks"
    launcher, launches = record(operator)
    distances = launcher.Distances(torch.zeros(300, 128))
    distances.nearest(5)
    distances.gap(torch.arange(300))
    compiled = compile_all(operator, launches, 90)
    assert set(compiled) == {"nearest", "nearest_earlier"}
    assert max(kernel.shared for kernel in compiled.values()) <= SHARED
    assert max(kernel.stack for kernel in compiled.values()) == 0, compiled
