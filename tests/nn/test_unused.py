"""Parameters that take part with a gradient of zero."""

import math

import pytest
import torch
from torch import nn

from disentangled_mil.nn import DeformableCrossAttention
from disentangled_mil.nn.unused import with_zero_gradients


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_stay_and_gradients_are_zero_whatever_the_parameters_hold(value: float, dtype: torch.dtype) -> None:
    module = nn.Conv2d(2, 2, 3)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    output = torch.tensor([1.5, -2.0], dtype=dtype, requires_grad=True)
    found = with_zero_gradients(output, module)
    assert found.dtype == dtype
    assert torch.equal(found, output)
    found.sum().backward()
    assert torch.equal(output.grad, torch.ones_like(output))
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in module.parameters())


def test_an_infinite_loss_does_not_reach_them() -> None:
    module = nn.Linear(2, 2)
    (with_zero_gradients(torch.ones(2), module) * math.nan).sum().backward()
    assert torch.equal(module.weight.grad, torch.zeros(2, 2))


def test_parameters_that_are_frozen_or_missing_and_calls_without_gradients_change_nothing() -> None:
    output, module = torch.ones(2), nn.Linear(2, 2)
    assert not with_zero_gradients(output, module.requires_grad_(False), nn.GELU()).requires_grad
    with torch.no_grad():
        assert with_zero_gradients(output, nn.Linear(2, 2)) is output


def test_a_layer_on_sets_gives_every_parameter_a_gradient() -> None:
    layer = DeformableCrossAttention(8, heads=2, dim_head=4, groups=2)
    for unused in (layer.to_offsets, layer.position_bias):
        for parameter in unused.parameters():
            nn.init.constant_(parameter, math.nan)
    tokens = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    layer(tokens, tokens).tokens.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    zero = {name.split(".")[0] for name, gradient in gradients.items() if not gradient.any()}
    assert zero == {"to_offsets", "position_bias"}
