"""Patch encoder: standardize, project, and remember what was fitted."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.nn.patch_encoder import PatchEncoder


@given(batch=st.integers(1, 3), tokens=st.integers(0, 4), features=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_it_is_standardize_linear_relu(batch: int, tokens: int, features: int, seed: int) -> None:
    encode = PatchEncoder(features, 3).double()
    source = torch.Generator().manual_seed(seed)
    patches = torch.randn(batch, tokens, features, dtype=torch.float64, generator=source)
    linear = encode.project[0]
    torch.testing.assert_close(encode(patches), (patches @ linear.weight.T + linear.bias).clamp(min=0))
    training = 5 + 3 * torch.randn(20, features, dtype=torch.float64, generator=source)
    encode.fit(training)
    standard = (patches - training.mean(0)) / training.std(0, correction=0)
    torch.testing.assert_close(encode(patches), (standard @ linear.weight.T + linear.bias).clamp(min=0))


def test_constant_features_and_a_single_patch_divide_by_one() -> None:
    encode = PatchEncoder(2, 3)
    encode.fit(torch.tensor([[7.0, 1.0], [7.0, 3.0]]))
    assert encode.mean.tolist() == [7.0, 2.0]
    assert encode.std.tolist() == [1.0, 1.0]
    encode.fit(torch.tensor([[4.0, 5.0]]))
    assert encode.mean.tolist() == [4.0, 5.0]
    assert encode.std.tolist() == [1.0, 1.0]


def test_stored_float16_features_are_fitted_without_overflow() -> None:
    patches = torch.full((3000, 1), 60.0, dtype=torch.float16)
    patches[::2] += 8
    encode = PatchEncoder(1, 2)
    encode.fit(patches)
    assert (encode.mean.item(), encode.std.item()) == (64.0, 4.0)
    assert encode(patches[None]).dtype == torch.float32


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25)
def test_parts_are_fitted_like_the_whole(sizes: list[int], offset: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    parts = [offset + 3 * torch.randn(size, 4, dtype=torch.float64, generator=source) for size in sizes]
    whole, streamed = PatchEncoder(4, 3).double(), PatchEncoder(4, 3).double()
    whole.fit(torch.cat(parts))
    streamed.fit(part for part in parts)
    torch.testing.assert_close(streamed.mean, whole.mean)
    torch.testing.assert_close(streamed.std, whole.std)


def test_features_of_any_scale_are_standardized() -> None:
    patches = 1e-9 * torch.randn(1000, 1)
    encode = PatchEncoder(1, 2)
    encode.fit(patches)
    torch.testing.assert_close(encode.std[0], patches.std(correction=0), rtol=1e-5, atol=0)


def test_features_that_are_silent_in_training_are_not_blown_up() -> None:
    patches = torch.randn(1000, 2)
    patches[:, 0] = 0
    patches[0, 0] = 1e-6
    encode = PatchEncoder(2, 2)
    encode.fit(patches)
    assert encode.std[0] == 1


def test_weights_of_another_type_than_the_statistics_are_taken() -> None:
    """As mixed precision by sharding has them."""
    encode = PatchEncoder(4, 3)
    encode.project.to(torch.bfloat16)
    assert encode(torch.randn(1, 2, 4)).dtype == torch.bfloat16


def test_what_was_fitted_is_stored_with_the_weights() -> None:
    encode = PatchEncoder(4, 3)
    encode.fit(torch.randn(10, 4) * 3 + 1)
    other = PatchEncoder(4, 3)
    other.load_state_dict(encode.state_dict())
    patches = torch.randn(1, 5, 4)
    assert torch.equal(other(patches), encode(patches))
    assert torch.equal(copy.deepcopy(encode)(patches), encode(patches))
    assert not any(p is encode.mean or p is encode.std for p in encode.parameters())


def test_dropout_acts_in_training_only() -> None:
    encode, patches = PatchEncoder(4, 8, dropout=0.5), torch.randn(1, 50, 4)
    torch.manual_seed(0)
    assert not torch.equal(encode(patches), encode(patches))
    encode.eval()
    assert torch.equal(encode(patches), encode(patches))


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30])
def test_what_padding_holds_is_never_looked_at(padding: float) -> None:
    torch.manual_seed(0)
    encode, patches = PatchEncoder(4, 3), torch.randn(2, 5, 4)
    encode.fit(patches.flatten(0, 1))
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    filled = patches.masked_fill(~mask[..., None], padding).requires_grad_()
    results = []
    for tokens in (encode(filled, mask), encode(patches)):
        gradients = torch.autograd.grad((tokens[mask] ** 2).sum(), encode.project.parameters(), retain_graph=True)
        results.append([tokens[mask], *gradients])
    torch.testing.assert_close(*results)
    (into_patches,) = torch.autograd.grad(encode(filled, mask).sum(), filled)
    assert not into_patches[~mask].any()
    assert into_patches[mask].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PatchEncoder(0), ValueError, "features must be at least 1, got 0"),
        (lambda: PatchEncoder(4, 0), ValueError, "dim must be at least 1, got 0"),
        (lambda: PatchEncoder(4, dropout=2.0), ValueError, "dropout must lie in [0, 1], got 2.0"),
        (
            lambda: PatchEncoder(4)(torch.zeros(1, 2, 3)),
            ValueError,
            "patches must have shape [B, N, features] = [B, N, 4], got [1, 2, 3]",
        ),
        (
            lambda: PatchEncoder(4)(torch.zeros(1, 2, 4, dtype=torch.uint8)),
            TypeError,
            "patches must be a floating-point tensor, got torch.uint8",
        ),
        (
            lambda: PatchEncoder(4)(torch.zeros(1, 2, 4), torch.ones(1, 3, dtype=torch.bool)),
            ValueError,
            "mask must have shape [B, N] = [1, 2], got [1, 3]",
        ),
        (
            lambda: PatchEncoder(4)(torch.zeros(1, 2, 4), torch.ones(1, 2)),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda: PatchEncoder(4).fit(torch.zeros(2, 3)),
            ValueError,
            "patches must have shape [n, features] = [n, 4], got [2, 3]",
        ),
        (
            lambda: PatchEncoder(4).fit(torch.zeros(0, 4)),
            ValueError,
            "patches must hold at least one patch to fit, got none",
        ),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
