"""What the kernels ask of a GPU, compiled to machine code without one: shared memory that is there, and few spills."""

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from disentangled_mil.ops.attention._carried import AttentionArguments, CarriedScores
from disentangled_mil.ops.position_bias import CarriedBias
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

        def replace(operator: str, launcher: str = "_triton") -> tuple[ModuleType, Launches]:
            module, kernels = (import_module(f"{operator}.{name}") for name in (launcher, "_triton_kernels"))
            launches: Launches = {}
            recorders = SimpleNamespace(
                **{
                    name: Recorder(name, kernel, launches)
                    for name, kernel in vars(kernels).items()
                    if hasattr(kernel, "arg_names")
                }
            )
            if hasattr(module, "kernels"):
                patch.setattr(module, "kernels", recorders)
                patch.setattr(module, "interpreted", lambda: True)
            else:
                patch.setattr(module, "_kernels", lambda: recorders)
            return module, launches

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


class Layer(NamedTuple):
    """A layer like the paper's: 8 heads, each with keys of its own; 32 features and 64 channels are the paper's."""

    bias: str
    dtype: torch.dtype
    features: int
    width: int
    kept: bool

    def arguments(self) -> AttentionArguments:
        """What the operator takes for this layer."""
        hidden: list[tuple[int, ...]] = [(self.features, 2), (self.features,), (self.features,) * 2, (self.features,)]
        shapes = [*hidden, (1, self.features), (1,)] if self.bias == "network" else [(1, 129, 129)]

        def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, requires_grad=True)

        scores = CarriedScores(
            query=leaf(1, 8, 100, self.width, dtype=self.dtype),
            key=leaf(1, 8, 50, self.width, dtype=self.dtype),
            query_position=leaf(1, 100, 2),
            key_position=leaf(1, 8, 50, 2),
            mask=torch.ones(1, 100, dtype=torch.bool),
            logit=leaf(1, 8, 50),
            bias=CarriedBias(self.bias, [leaf(*shape) for shape in shapes], 2.0),
            scale=0.125,
        )
        value, seed = leaf(1, 8, 50, self.width, dtype=self.dtype), torch.zeros((), dtype=torch.int64)
        return AttentionArguments(scores, value, 0.1, seed, self.kept)


@pytest.mark.parametrize(
    ("layer", "capability", "stack"),  # the latter as measured, and some more
    [
        (Layer("network", torch.float32, 32, 64, kept=False), 90, 1408),
        (Layer("network", torch.float16, 32, 64, kept=True), 90, 576),
        (Layer("network", torch.float32, 64, 64, kept=False), 80, 3328),
        (Layer("table", torch.float16, 32, 64, kept=False), 90, 192),
        (Layer("table", torch.float16, 32, 256, kept=False), 80, 512),
    ],
    ids=str,
)
def test_kernels_of_attention_fit_and_spill_no_more_than_was_measured(
    record: Callable[..., tuple[ModuleType, Launches]], layer: Layer, capability: int, stack: int
) -> None:
    operator = "disentangled_mil.ops.attention"
    _, launches = record(operator, launcher="_triton_launch")
    attended = import_module(f"{operator}._triton")._attend(layer.arguments())
    (attended.out.float().sum() + attended.mass.square().sum() + attended.weights.square().sum()).backward()
    compiled = compile_all(operator, launches, capability)
    assert set(compiled) == {"attend", "weigh_keys", "grad_queries", "grad_keys"}
    assert max(kernel.shared for kernel in compiled.values()) <= SHARED
    if not triton.__version__.startswith("3.7."):
        pytest.skip(f"spills were measured with Triton 3.7, another compiler spills otherwise: {triton.__version__}")
    assert max(kernel.stack for kernel in compiled.values()) <= stack, compiled


def test_kernels_of_density_peaks_fit_and_spill_nothing(
    record: Callable[[str], tuple[ModuleType, Launches]],
) -> None:
    operator = "disentangled_mil.ops.density_peaks"
    launcher, launches = record(operator)
    distances = launcher.KernelDistances(torch.zeros(300, 128))
    distances.nearest(5)
    distances.gap(torch.arange(300))
    compiled = compile_all(operator, launches, 90)
    assert set(compiled) == {"nearest", "nearest_earlier"}
    assert max(kernel.shared for kernel in compiled.values()) <= SHARED
    assert max(kernel.stack for kernel in compiled.values()) == 0, compiled
