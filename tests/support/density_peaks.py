"""What the tests of density peaks share: bags, backends, and the clustering of them."""

import importlib
from types import ModuleType

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.ops import density_peaks
from disentangled_mil.ops._triton_runtime import available
from disentangled_mil.ops.density_peaks import DensityPeaks

seeds = st.integers(0, 2**31 - 1)
needs_triton = pytest.mark.skipif(not available(), reason="needs Triton, which is not installed")
BACKENDS = ["reference", "streaming", pytest.param("triton", marks=needs_triton)]


def find(
    tokens: Tensor,
    clusters: int,
    *,
    mask: Tensor | None = None,
    backend: str,
    device: str = "cpu",
    **options: int,
) -> DensityPeaks:
    """``density_peaks`` of tensors on the CPU; kernels run on the device, all else on the CPU."""
    if backend == "triton":
        tokens, mask = tokens.to(device), None if mask is None else mask.to(device)
    found = density_peaks(tokens, clusters, mask=mask, backend=backend, **options)
    return DensityPeaks(*(part.cpu() for part in found))


def kernels() -> ModuleType:
    """The module of the kernels, which imports Triton."""
    return importlib.import_module("disentangled_mil.ops.density_peaks._triton")


def random_bags(seed: int, bags: int, size: int, width: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(bags, size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def repeated_bag(seed: int, size: int, width: int, distinct: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A bag that draws its tokens, with repetition, from a few."""
    tokens = random_bags(seed, 1, distinct, width, dtype=dtype)
    return tokens[:, torch.randint(distinct, (size,), generator=torch.Generator().manual_seed(seed + 1))]


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
