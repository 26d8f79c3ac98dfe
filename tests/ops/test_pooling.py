"""Masked means: real tokens only, and something defined for none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.ops.pooling import masked_mean


@given(batch=st.integers(1, 3), tokens=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_the_mean_is_that_of_the_real_tokens_alone(batch: int, tokens: int, share: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, tokens, 4, dtype=torch.float64, generator=source)
    mask = torch.rand(batch, tokens, generator=source) < share
    poisoned = features.masked_fill(~mask[..., None], float("inf")).requires_grad_()
    means = masked_mean(poisoned, mask)
    for mean, bag, real in zip(means, features, mask, strict=True):
        expected = bag[real].mean(0) if real.any() else torch.zeros(4, dtype=torch.float64)
        torch.testing.assert_close(mean, expected)
    means.sum().backward()
    assert poisoned.grad is not None
    expected_grad = mask / mask.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(poisoned.grad, expected_grad[..., None].double().expand_as(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sum_of_many_tokens_does_not_overflow(dtype: torch.dtype) -> None:
    mean = masked_mean(torch.full((1, 3000, 1), 64.0, dtype=dtype), torch.ones(1, 3000, dtype=torch.bool))
    assert mean.dtype == dtype
    assert mean.item() == 64


def test_gradient_is_that_of_finite_differences(generator: torch.Generator) -> None:
    tokens = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.autograd.gradcheck(lambda t: masked_mean(t, mask), tokens)
