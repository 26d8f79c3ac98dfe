"""What the tests of the attention operators share: arguments, gradients, calls and allocations."""

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from disentangled_mil.ops import BiasTable, MLPBias
from disentangled_mil.ops._triton_runtime import available, interpreted

Arguments = dict[str, Any]
Call = tuple[Any, tuple[Any, ...]]


@pytest.fixture(scope="session", autouse=True)
def patch_the_interpreter_once() -> Iterator[None]:
    """Triton's interpreter patches its whole language at every call of a function by a kernel; once a launch will do.

    That was two fifths of the time of the kernels' tests. Releases of Triton that do it otherwise are left alone.
    """
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


@pytest.fixture(scope="session")
def draw() -> Callable[..., Arguments]:
    """Draw arguments of ``biased_attention``; without the value they make ``AttentionScores``."""
    return _draw


@pytest.fixture(scope="session")
def leaves() -> Callable[[Arguments], list[Tensor]]:
    """All tensors among the arguments that want a gradient."""
    return _leaves


@pytest.fixture(scope="session")
def slopes() -> Callable[..., list[Tensor]]:
    """Gradients of some outputs, each weighted at random; zeros where there is no path."""
    return _slopes


@pytest.fixture(scope="session")
def calls() -> Callable[[Callable[[], object]], list[Call]]:
    """The package's operators that something calls, and arguments for ``opcheck`` of each."""
    return _calls


@pytest.fixture(scope="session")
def allocations() -> Callable[[Callable[[], object]], list[int]]:
    """Bytes of every allocation that something makes, the largest first."""
    return _allocations


@pytest.fixture(scope="session")
def use_tile() -> Callable[[pytest.MonkeyPatch, int, bool], None]:
    """Set the entries of a tile, and whether all networks or none are read from tables of their pieces."""

    def set_tile(patch: pytest.MonkeyPatch, entries: int, pieces: bool) -> None:
        for name, size in {
            "attention._tiles.TILE": entries,
            "attention._tiles.LEAST_QUERIES": 1,
            "attention._tiles.LEAST_NETWORK_QUERIES": 1,
            "position_bias._bias_tiles.NETWORK_TILE": entries,
            "position_bias._bias_tiles.LEAST_PAIRS": 0 if pieces else math.inf,
        }.items():
            patch.setattr(f"disentangled_mil.ops.{name}", size)

    return set_tile


def _draw(
    seed: int,
    *,
    kind: str = "none",
    batch: int = 2,
    groups: int = 2,
    per_group: int = 2,
    queries: int = 5,
    keys: int = 4,
    width: int = 3,
    padded: float = 0.0,
    dropped: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Arguments:
    """A share of the queries is padding, which holds NaN; a share of the keys is taken out, in some bags all."""
    source = torch.Generator().manual_seed(seed)
    heads = groups * per_group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=source)

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_()

    mask = torch.rand(batch, queries, generator=source) >= padded
    closed = torch.rand(batch, groups, keys, generator=source) < dropped
    arguments = {
        "query": leaf(normal(batch, heads, queries, width).masked_fill(~mask[:, None, :, None], torch.nan)),
        "key": leaf(normal(batch, heads, keys, width)),
        "value": leaf(normal(batch, heads, keys, width)),
        "query_position": leaf(normal(batch, queries, 2).tanh().masked_fill(~mask[..., None], torch.nan)),
        "key_position": leaf(normal(batch, groups, keys, 2).tanh()),
        "key_logit": leaf(normal(batch, groups, keys).masked_fill(closed, -torch.inf)),
        "query_mask": mask,
    }
    if kind == "network":
        shapes = [(5, 2), (5,), (5, 5), (5,), (per_group, 5), (per_group,)]
        arguments["bias"] = MLPBias(*(leaf(normal(*shape)) for shape in shapes))
    if kind == "table":  # some displacements lie outside
        arguments["bias"] = BiasTable(leaf(normal(per_group, 4, 4)), 1.25)
    return arguments


def _leaves(arguments: Arguments) -> list[Tensor]:
    parts = [part for entry in arguments.values() for part in (entry if isinstance(entry, tuple) else [entry])]
    return [part for part in parts if isinstance(part, Tensor) and part.requires_grad]


def _slopes(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, dtype=torch.float64, generator=source).to(out.dtype) for out in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True))


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "disentangled_mil":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def _calls(action: Callable[[], object]) -> list[Call]:
    with _Recorder() as recorder:
        action()
    # The backward operators have no gradient of their own, which opcheck would ask for.
    return [(func, _copy(args, "backward" not in func._opname)) for func, args in recorder.calls]


def _copy(value: Any, trained: bool) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(trained and value.requires_grad)
    return type(value)(_copy(part, trained) for part in value) if isinstance(value, (list, tuple)) else value


def _allocations(action: Callable[[], object]) -> list[int]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    events = record.profiler.kineto_results.events()
    return sorted((event.nbytes() for event in events if event.name() == "[memory]"), reverse=True)
