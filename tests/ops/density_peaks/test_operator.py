"""Density peaks as an operator: precision, layout, choice of a backend, registration, errors."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from disentangled_mil.ops import density_peaks
from tests.support.density_peaks import (
    BACKENDS,
    equal,
    find,
    random_bags,
)

package = importlib.import_module("disentangled_mil.ops.density_peaks")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    tokens = random_bags(0, 2, 40, 8).to(dtype)
    found = density_peaks(tokens, 3)
    assert found.score.dtype == torch.float32
    assert equal(found, density_peaks(tokens.float(), 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str, device: str) -> None:
    tokens = random_bags(0, 1, 200, 8, dtype=torch.float32)
    plain = find(tokens, 3, backend=backend, device=device)
    with torch.autocast(device if backend == "triton" else "cpu", dtype=torch.bfloat16):
        assert equal(find(tokens, 3, backend=backend, device=device), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_tokens_are_taken(backend: str, device: str) -> None:
    tokens = random_bags(0, 2, 8, 150).transpose(1, 2)
    assert equal(
        find(tokens, 3, backend=backend, device=device), find(tokens.contiguous(), 3, backend=backend, device=device)
    )


@pytest.mark.parametrize("size", [50, 200])
def test_auto_chooses_by_size_and_the_choice_shows_nowhere(size: int) -> None:
    tokens = random_bags(0, 1, size, 8)
    assert equal(density_peaks(tokens, 3), density_peaks(tokens, 3, backend="streaming"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_explicit_backend_is_never_replaced(backend: str, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    chosen, implementation = [], package._implementation

    def record(name: str) -> object:
        chosen.append(name)
        return implementation(name)

    monkeypatch.setattr(package, "_implementation", record)
    for size in (4, 200):
        find(torch.randn(1, size, 4), 2, backend=backend, device=device)
    assert chosen == [backend] * 2
    assert (
        implementation(backend).__name__
        == {"reference": "DenseDistances", "streaming": "StreamedDistances", "triton": "KernelDistances"}[backend]
    )


@pytest.mark.parametrize(
    ("size", "on_a_gpu", "with_triton", "chosen"),
    [
        (128, False, True, "reference"),
        (128, True, True, "reference"),
        (129, False, True, "streaming"),
        (129, True, False, "streaming"),
        (129, True, True, "triton"),
    ],
)
def test_auto_takes_kernels_for_large_bags_where_there_are_any(
    size: int, on_a_gpu: bool, with_triton: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "available", lambda: with_triton)
    assert package._fastest(SimpleNamespace(shape=(1, size, 4), is_cuda=on_a_gpu)) == chosen


def test_nothing_is_differentiable() -> None:
    assert not density_peaks(torch.randn(1, 9, 4, requires_grad=True), 2).score.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operator_is_well_registered(backend: str, device: str) -> None:
    device = device if backend == "triton" else "cpu"
    mask = torch.ones(2, 9, dtype=torch.bool, device=device)
    operator = torch.ops.disentangled_mil.density_peaks.default
    torch.library.opcheck(operator, (torch.randn(2, 9, 4, device=device), mask, 3, 5, backend))


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_it_compiles_without_a_graph_break(backend: str, device: str) -> None:
    tokens = random_bags(0, 2, 30, 4).to(device if backend == "triton" else "cpu")
    compiled = torch.compile(lambda x: density_peaks(x, 2, backend=backend), fullgraph=True, backend="eager")
    assert equal(compiled(tokens), density_peaks(tokens, 2, backend=backend))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(3, 4)}, ValueError, r"tokens must have shape \[B, N, C\], got \[3, 4\]"),
        (
            {"tokens": torch.zeros(2, 7, 4, dtype=torch.int64)},
            TypeError,
            "tokens must be a floating-point tensor, got torch.int64",
        ),
        ({"clusters": 0}, ValueError, "clusters must be at least 1, got 0"),
        ({"clusters": 2.0}, TypeError, "clusters must be an integer, got float"),
        ({"neighbors": 0}, ValueError, "neighbors must be at least 1, got 0"),
        (
            {"mask": torch.ones(2, 5, dtype=torch.bool)},
            ValueError,
            r"mask must have shape \[B, N\] = \[2, 7\], got \[2, 5\]",
        ),
        (
            {"mask": torch.ones(2, 7)},
            TypeError,
            r"mask must be a bool tensor \(True = real token\), got torch.float32",
        ),
        (
            {"backend": "fast"},
            ValueError,
            "backend must be one of 'auto', 'reference', 'streaming', 'triton', got 'fast'",
        ),
    ],
)
def test_errors_name_the_requirement_and_the_value(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"tokens": torch.zeros(2, 7, 4), "clusters": 2} | change
    with pytest.raises(error, match=message):
        density_peaks(**arguments)
