"""Depthwise windows: by hand, against a convolution, beside the map, in low precision, on the way back."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from disentangled_mil.ops.windows import depthwise_windows
from tests.support.allocations import allocations
from tests.support.operators import calls

few = settings(max_examples=20)
seeds = st.integers(0, 10**6)


def draw(
    seed: int,
    *,
    batch: int = 2,
    groups: int = 2,
    places: int = 7,
    points: int = 3,
    side: int = 2,
    channels: int = 3,
    outside: float = 0.2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, windows that read any of them (a share of them none), and a kernel."""
    source = torch.Generator().manual_seed(seed)
    cells = torch.randn(batch, groups, places, channels, dtype=torch.float64, generator=source)
    window = torch.randint(places, (batch, points, side, side), generator=source)
    window[torch.rand(window.shape, generator=source) < outside] = places
    kernel = torch.randn(side, side, channels, dtype=torch.float64, generator=source)
    return cells.to(dtype).requires_grad_(), window, kernel.to(dtype).requires_grad_()


def dense(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    """All windows at once, of cells with a zero behind the last one."""
    padded = F.pad(cells, (0, 0, 0, 1))
    read = torch.stack([bag[:, index] for bag, index in zip(padded, window, strict=True)])  # [B, G, J, S, S, C]
    return (read * kernel).sum((3, 4))


def trained(action: Callable[..., Tensor], cells: Tensor, window: Tensor, kernel: Tensor) -> list[Tensor]:
    """The result and its gradients, weighted unequally."""
    out = action(cells, window, kernel)
    weights = torch.arange(out.numel()).view(out.shape).sin().to(out.dtype)
    return [out, *torch.autograd.grad(out, (cells, kernel), weights)]


def lattice(height: int, width: int, side: int, stride: int, padding: int) -> Tensor:
    """The windows of a convolution [J, S, S]; the index behind the last cell where they lie on its padding."""
    index = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    ring = F.pad(index, (padding,) * 4, value=height * width)
    return F.unfold(ring, side, stride=stride)[0].T.reshape(-1, side, side).long()


def test_two_windows_by_hand() -> None:
    cells = torch.tensor([[[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]]])
    window = torch.tensor([[[[0, 1], [1, 2]], [[2, 2], [3, 0]]]])  # 3 is no cell
    kernel = torch.tensor([[[1.0, 0.0], [10.0, 1.0]], [[100.0, 0.0], [1000.0, 2.0]]])
    first = [1 + 20 + 200 + 3000, 20 + 60]
    second = [3 + 30 + 0 + 1000, 30 + 20]
    assert depthwise_windows(cells, window, kernel).tolist() == [[[first, second]]]


@given(
    seed=seeds,
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    side=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    groups=st.integers(1, 3),
)
@few
def test_on_a_lattice_it_is_a_depthwise_convolution_with_gradients(
    seed: int, height: int, width: int, side: int, stride: int, padding: int, groups: int
) -> None:
    padding += max(0, side - 2 * padding - min(height, width) + 1) // 2  # room for a window
    window = lattice(height, width, side, stride, padding).expand(2, -1, -1, -1)
    cells, _, kernel = draw(seed, groups=groups, places=height * width, side=side)

    def convolution(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
        images = cells.flatten(0, 1).transpose(1, 2).unflatten(2, (height, width))  # [B G, C, H, W]
        filters = kernel.movedim(-1, 0)[:, None]
        out = F.conv2d(images, filters, stride=stride, padding=padding, groups=kernel.shape[-1])
        return out.flatten(2).transpose(1, 2).unflatten(0, (2, groups))

    found, expected = (trained(action, cells, window, kernel) for action in (depthwise_windows, convolution))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@given(
    seed=seeds,
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    places=st.integers(1, 9),
    points=st.integers(0, 5),
    side=st.integers(1, 3),
    channels=st.integers(1, 3),
    outside=st.sampled_from([0.0, 0.4, 1.0]),
)
@few
def test_windows_may_lie_anywhere_and_cells_outside_count_as_zero(
    seed: int, batch: int, groups: int, places: int, points: int, side: int, channels: int, outside: float
) -> None:
    sizes = {"batch": batch, "groups": groups, "places": places, "points": points, "side": side, "channels": channels}
    cells, window, kernel = draw(seed, outside=outside, **sizes)
    if batch == 0:
        assert depthwise_windows(cells, window, kernel).shape == (0, groups, points, channels)
        return
    found, expected = (trained(action, cells, window, kernel) for action in (depthwise_windows, dense))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    if outside == 1:
        assert all((part == 0).all() for part in found)


def test_cells_that_no_window_reads_have_no_gradient() -> None:
    cells, window, kernel = draw(0, places=9)
    window = window.clamp(max=4)
    _, into_cells, _ = trained(depthwise_windows, cells, window, kernel)
    assert (into_cells[:, :, 5:] == 0).all()
    assert (into_cells[:, :, :5] != 0).any()


def test_a_bag_alone_equals_itself_in_a_batch() -> None:
    cells, window, kernel = draw(1, batch=3)
    together = depthwise_windows(cells, window, kernel)
    for bag in range(3):
        alone = depthwise_windows(cells[bag, None], window[bag, None], kernel)
        assert torch.equal(alone[0], together[bag])


def test_gradients_are_those_of_finite_differences() -> None:
    cells, window, kernel = draw(2)
    assert torch.autograd.gradcheck(lambda c, k: depthwise_windows(c, window, k), (cells, kernel))


@pytest.mark.parametrize("trains", ["cells", "kernel"])
def test_a_gradient_does_not_depend_on_whether_the_other_is_wanted(trains: str) -> None:
    cells, window, kernel = draw(3)
    _, *both = trained(depthwise_windows, cells, window, kernel)
    (kernel if trains == "cells" else cells).requires_grad_(False)
    out = depthwise_windows(cells, window, kernel)
    weights = torch.arange(out.numel()).view(out.shape).sin().to(out.dtype)
    (alone,) = torch.autograd.grad(out, cells if trains == "cells" else kernel, weights)
    assert torch.equal(alone, both[trains == "kernel"])


def test_non_contiguous_inputs_and_gradients_are_read_alike() -> None:
    cells, window, kernel = draw(4)
    strided = [part.movedim(0, -1).contiguous().movedim(-1, 0) for part in (cells, window, kernel)]
    assert not any(part.is_contiguous() for part in strided)
    results = []
    for given_ in ((cells, window, kernel), strided):
        out = depthwise_windows(*given_)
        weights = torch.arange(out.numel()).view(out.mT.shape).sin().to(out.dtype).mT
        assert not weights.is_contiguous()
        results.append([out, *torch.autograd.grad(out, (cells, kernel), weights)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    cells, window, kernel = draw(5, side=5, places=40, points=20, dtype=dtype)
    wide = [cells.detach().double().requires_grad_(), window, kernel.detach().double().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):  # which changes nothing
        found = trained(depthwise_windows, cells, window, kernel)
    out = dense(*wide)
    weights = torch.arange(out.numel()).view(out.shape).sin().to(dtype).double()
    expected = [out, *torch.autograd.grad(out, wide[::2], weights)]
    for fast, truth in zip(found, expected, strict=True):
        assert fast.dtype == dtype
        tiny = 64 * torch.finfo(torch.float32).eps * (1 + truth.abs().max())
        assert ((fast.double() - truth).abs() <= torch.finfo(dtype).eps * truth.abs() + tiny).all()


def test_a_kernel_of_another_type_is_converted_to_that_of_the_cells() -> None:
    cells, window, kernel = draw(6, dtype=torch.float32)
    narrow = cells.detach().bfloat16()
    found = depthwise_windows(narrow, window, kernel)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, depthwise_windows(narrow, window, kernel.bfloat16()))
    found.float().sum().backward()
    assert kernel.grad is not None
    assert kernel.grad.dtype == torch.float32


def test_the_same_input_gives_the_same_bits() -> None:
    given_ = draw(7, places=50, points=200, side=4, channels=8, dtype=torch.float32)
    first, second = (trained(depthwise_windows, *given_) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("outside", [0.0, 0.4])
def test_the_operators_are_well_registered(outside: float) -> None:
    cells, window, kernel = draw(8, outside=outside)
    found = calls(lambda: depthwise_windows(cells, window, kernel).square().sum().backward())
    assert len(found) == 2
    for operator, arguments in found:
        torch.library.opcheck(operator, arguments)


def test_it_compiles_as_one_graph() -> None:
    given_ = draw(9)
    compiled = torch.compile(depthwise_windows, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(trained(compiled, *given_), trained(depthwise_windows, *given_))


def test_no_more_than_a_row_of_the_windows_is_held() -> None:
    given_ = draw(10, places=10, points=100, side=8, channels=16, dtype=torch.float32)
    row = 4 * 2 * 2 * 100 * 8 * 16
    assert row <= allocations(lambda: trained(depthwise_windows, *given_))[0] < 2 * row
    assert allocations(lambda: trained(dense, *given_))[0] >= 8 * row


def test_cells_that_lie_apart_are_copied_once_and_not_for_every_row() -> None:
    cells, window, kernel = draw(10, places=500, points=3, side=8, channels=16, dtype=torch.float32)
    apart = cells.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    whole = 4 * cells.numel()
    found = allocations(lambda: trained(depthwise_windows, apart, window, kernel))
    # A copy on either way, and the gradient, laid out as the cells are.
    assert sum(nbytes >= whole for nbytes in found) <= 4


def test_a_gradient_of_a_gradient_is_refused() -> None:
    cells, window, kernel = draw(11)
    out = depthwise_windows(cells, window, kernel)
    (slope,) = torch.autograd.grad(out.square().sum(), cells, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^depthwise_windows has no gradient of a gradient$"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": torch.zeros(2, 7, 3)}, "cells must have shape [B, G, M, C], got [2, 7, 3]"),
        (
            {"window": torch.zeros(1, 3, 2, 2, dtype=torch.int64)},
            "window must have shape [B, J, S, S] = [2, J, S, S], got [1, 3, 2, 2]",
        ),
        ({"kernel": torch.zeros(3, 3, 3)}, "kernel must have shape [S, S, C] = [2, 2, 3], got [3, 3, 3]"),
        ({"kernel": torch.zeros(3, 2, 3)}, "kernel must have shape [S, S, C] = [2, 2, 3], got [3, 2, 3]"),
        ({"kernel": torch.zeros(2, 2, 4)}, "kernel must have shape [S, S, C] = [2, 2, 3], got [2, 2, 4]"),
        (
            {"window": torch.zeros(2, 3, 2, 3, dtype=torch.int64)},
            "window must have shape [B, J, S, S] = [2, 3, 3, 3], got [2, 3, 2, 3]",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    arguments = dict(zip(("cells", "window", "kernel"), draw(12), strict=True))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        depthwise_windows(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cells": torch.zeros(2, 2, 7, 3, dtype=torch.int64)},
            "cells must be a floating-point tensor, got torch.int64",
        ),
        ({"window": torch.zeros(2, 3, 2, 2)}, "window must hold torch.int64 indices, got torch.float32"),
    ],
)
def test_types_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    arguments = dict(zip(("cells", "window", "kernel"), draw(12), strict=True))
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        depthwise_windows(**arguments | change)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
def test_forward_mode_is_refused() -> None:
    cells, window, kernel = draw(11)
    for tangents in ((cells, torch.zeros_like(kernel)), (torch.zeros_like(cells), kernel)):
        with pytest.raises(NotImplementedError, match=r"^depthwise_windows has no derivative in forward mode"):
            torch.func.jvp(lambda c, k: depthwise_windows(c, window, k), (cells, kernel), tangents)
