"""Masks of other packages: there and back, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.bags import mask_from, mask_to
from disentangled_mil.bags.masks import CONVENTIONS

DTYPES = {
    "real": (torch.bool, torch.uint8, torch.int64, torch.float16),
    "padding": (torch.bool, torch.uint8, torch.float32),
    "additive": (torch.float16, torch.float64),
    "lengths": (torch.int32, torch.int64),
}


@given(data=st.data(), convention=st.sampled_from(CONVENTIONS), bags=st.integers(1, 4), tokens=st.integers(1, 9))
def test_every_convention_comes_back(data, convention, bags, tokens):
    if convention == "lengths":
        lengths = data.draw(st.lists(st.integers(0, tokens), min_size=bags, max_size=bags))
        mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    else:
        row = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
        mask = torch.tensor([data.draw(row) for _ in range(bags)])
    dtype = data.draw(st.sampled_from(DTYPES[convention]))
    other = mask_to(mask, convention, dtype=dtype)
    assert other.dtype == dtype
    assert torch.equal(mask_from(other, convention, tokens=tokens), mask)


def test_polarity_is_that_of_pytorch():
    mask = torch.tensor([[True, True, False]])
    attention = torch.nn.MultiheadAttention(4, 1, batch_first=True)
    x = torch.randn(1, 3, 4)
    _, weights = attention(x, x, x, key_padding_mask=mask_to(mask, "padding"))
    assert (weights[0, :, 2] == 0).all()
    _, added = attention(x, x, x, attn_mask=mask_to(mask, "additive").expand(3, 3))
    torch.testing.assert_close(added, weights)


def test_largest_negative_numbers_are_padding():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        other = torch.tensor([[0.0, torch.finfo(dtype).min]], dtype=dtype)
        assert mask_from(other, "additive").tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("other", "convention", "message"),
    [
        (torch.tensor([[0.0, 1.0], [0.5, 2.0]]), "real", r"other must hold values 0 or 1, got 0.5 at \[1, 0\]; give"),
        (torch.tensor([[torch.nan]]), "padding", r"0 or 1, got nan at \[0, 0\]"),
        (torch.tensor([[1.0]]), "additive", r"0 for a real token and at most -1e4 for padding, got 1.0 at \[0, 0\]"),
        (torch.tensor([2, -1]), "lengths", r"from 0 to the number of tokens, 2, got -1 at \[1\]"),
        (torch.tensor([1]), "real", r"other must have shape \[B, N\]"),
        (torch.tensor([[1]]), "mine", "convention must be"),
    ],
)
def test_other_values_are_refused(other, convention, message):
    with pytest.raises(ValueError, match=message):
        mask_from(other, convention)


def test_masks_that_lengths_cannot_tell_are_refused():
    with pytest.raises(ValueError, match="must have the real tokens of every bag first"):
        mask_to(torch.tensor([[False, True]]), "lengths")
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        mask_to(torch.ones(1, 2), "real")
