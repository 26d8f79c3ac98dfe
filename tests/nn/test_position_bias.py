"""Continuous position bias: the formula, any shape, low precision."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.nn.position_bias import ContinuousPositionBias


@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_bias_is_the_network_of_the_log_spaced_displacement(shape: list[int], outputs: int, seed: int) -> None:
    bias = ContinuousPositionBias(4, outputs).double()
    displacement = torch.randn(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    spaced = torch.where(displacement < 0, -(1 - displacement).log(), (1 + displacement).log())
    first, second, last = bias.mlp[0], bias.mlp[2], bias.mlp[4]
    hidden = (spaced @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(bias(displacement), hidden @ last.weight.T + last.bias)


def test_spacing_is_odd_and_zero_at_zero() -> None:
    bias = ContinuousPositionBias(4, 2)
    with torch.no_grad():  # two units for either sign of two sums of the spaced numbers, then their differences
        w1, b1, w2, b2, w3, b3 = bias.weights()
        w1.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0], [3.0, -1.0], [-3.0, 1.0]]))
        w2.copy_(torch.eye(4))
        w3.copy_(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
        for constant in (b1, b2, b3):
            constant.zero_()
    displacement = torch.tensor([[0.0, 0.0], [0.5, -2.0]])
    x, y = torch.tensor([0.5, 2.0]).log1p()
    torch.testing.assert_close(bias(displacement[1]), torch.stack([x - 2 * y, 3 * x + y]))
    assert (bias(displacement[:1]) == 0).all()
    torch.testing.assert_close(bias(-displacement), -bias(displacement))


def test_gradient_reaches_displacements_and_parameters() -> None:
    bias = ContinuousPositionBias(4, 2).double()
    displacement = torch.tensor([[0.3, -0.7], [1.5, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bias, displacement)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_displacements_of_float32_fit_parameters_of_low_precision(dtype: torch.dtype) -> None:
    assert ContinuousPositionBias(4, 2).to(dtype)(torch.randn(3, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 1), "hidden must be at least 1, got 0"), ((4, 0), "outputs must be at least 1, got 0")],
)
def test_refusals(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ContinuousPositionBias(*sizes)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_its_layers_may_be_parametrized(layer: int) -> None:
    bias = ContinuousPositionBias(4, 2)
    displacement = torch.randn(5, 2)
    expected = bias(displacement)
    torch.nn.utils.parametrizations.weight_norm(bias.mlp[layer])
    torch.testing.assert_close(bias(displacement), expected)


def test_its_table_is_as_good_under_autocast() -> None:
    bias = ContinuousPositionBias(32, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = bias.table(17)
    assert torch.equal(rounded.values, bias.table(17).values)
