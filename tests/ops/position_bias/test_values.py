"""A network at many displacements, with nothing kept: the same values and gradients as calling it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from disentangled_mil import ContinuousPositionBias
from disentangled_mil.ops import MLPBias
from disentangled_mil.ops.position_bias import _network, network_biases
from tests.support.operators import calls


def network(seed: int, features: int, outputs: int, dtype: torch.dtype = torch.float64) -> MLPBias:
    torch.manual_seed(seed)
    return ContinuousPositionBias(features, outputs).to(dtype).weights()


def places(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 2, dtype=torch.float64, generator=source).to(dtype).requires_grad_()


@given(
    seed=st.integers(0, 10**6),
    features=st.integers(1, 9),
    outputs=st.integers(1, 3),
    rows=st.integers(0, 5),
    columns=st.integers(1, 7),
    at_once=st.sampled_from([1, 3, 1000]),
    wanted=st.sets(st.integers(0, 6), min_size=1),
)
@settings(max_examples=50)
def test_values_and_gradients_are_the_networks(
    seed: int, features: int, outputs: int, rows: int, columns: int, at_once: int, wanted: set[int]
) -> None:
    bias, displacement = network(seed, features, outputs), places(seed, rows, columns)
    leaves = [(*bias, displacement)[index] for index in sorted(wanted)]
    for tensor in (*bias, displacement):
        tensor.requires_grad_(any(tensor is leaf for leaf in leaves))
    expected = bias(displacement)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_network, "MOST_PAIRS", at_once)
        found = network_biases(bias, displacement)
        arriving = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(found, expected)
        slopes = torch.autograd.grad(found, leaves, arriving, allow_unused=True)
    expected_slopes = torch.autograd.grad(expected, leaves, arriving, allow_unused=True)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        torch.testing.assert_close(slope, expected_slope)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    low = network(0, 8, 2, dtype)
    high = MLPBias(*(part.detach().float() for part in low))
    displacement = places(1, 50, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network_biases(low, displacement)
        found.sum().backward()
    torch.testing.assert_close(found, high(displacement))
    assert {part.grad.dtype for part in low if part.grad is not None} == {dtype}


def test_no_hidden_layer_is_kept() -> None:
    layer = ContinuousPositionBias(64, 1)
    saved: list[int] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        layer.table(33)
    assert max(saved) == max(2 * 33**2, 64**2)


def test_the_operators_are_well_registered() -> None:
    found = calls(lambda: network_biases(network(0, 5, 2), places(0, 3, 4)).square().sum().backward())
    assert len(found) == 2
    for operator, arguments in found:
        torch.library.opcheck(operator, arguments)


def test_one_graph_serves_any_number_of_displacements() -> None:
    bias, graphs = network(0, 5, 2), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda place: network_biases(bias, place), fullgraph=True, dynamic=True, backend=graphs)
    for count in (5, 6, 9):
        torch.testing.assert_close(compiled(places(0, count)), network_biases(bias, places(0, count)))
    assert graphs.frame_count == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
def test_a_gradient_of_a_gradient_and_forward_mode_are_refused() -> None:
    bias, displacement = network(0, 5, 2), places(0, 4)
    (slope,) = torch.autograd.grad(network_biases(bias, displacement).square().sum(), displacement, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"^a table of a network has no gradient of a gradient$"):
        slope.sum().backward()
    with pytest.raises(NotImplementedError, match=r"^a table of a network has no derivative in forward mode"):
        torch.func.jvp(lambda place: network_biases(bias, place), (displacement,), (displacement,))
