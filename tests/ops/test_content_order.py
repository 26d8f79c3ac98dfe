"""The order of tokens by their content."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.ops import content_order


@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), distinct=st.integers(1, 12))
@settings(max_examples=25)
def test_real_tokens_come_first_in_an_order_that_follows_them(seed: int, count: int, distinct: int) -> None:
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randn(distinct, 3, generator=source)[torch.randint(distinct, (1, count), generator=source)]
    mask = torch.rand(1, count, generator=source) < 0.7
    tokens[~mask] = torch.nan
    shuffle = torch.randperm(count, generator=source)
    real = int(mask.sum())
    first, second = content_order(tokens, mask)[0], content_order(tokens[:, shuffle], mask[:, shuffle])[0]
    assert first.sort().values.tolist() == list(range(count))
    assert mask[0, first[:real]].all()
    assert torch.equal(tokens[0, first[:real]], tokens[0, shuffle[second[:real]]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: content_order(torch.zeros(2, 3), torch.ones(2, 3) > 0),
            ValueError,
            "tokens must have shape [B, N, C]",
        ),
        (lambda: content_order(torch.zeros(1, 2, 3).long(), torch.ones(1, 2) > 0), TypeError, "tokens must be"),
        (lambda: content_order(torch.zeros(1, 2, 3), torch.ones(1, 2)), TypeError, "mask must be a bool tensor"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
