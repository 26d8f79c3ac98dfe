"""The choice of the keys of a set."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.nn.set_keys import set_keys


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask_of(counts: list[int]) -> torch.Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def test_bags_of_up_to_so_many_tokens_keep_all_of_them_in_place() -> None:
    tokens, mask = draw(0, 2, 5, 3), mask_of([5, 2])
    keys = set_keys(tokens, mask, 5)
    assert keys.chosen is None
    assert torch.equal(keys.mask, mask)
    assert torch.equal(keys.tokens[0], tokens[0])


@given(seed=st.integers(0, 10**6), most=st.integers(1, 12))
@settings(max_examples=25)
def test_the_choice_is_real_distinct_and_free_of_order(seed: int, most: int) -> None:
    source = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 20, (3,), generator=source).tolist()
    tokens, mask = draw(seed, 3, max(counts), 4), mask_of(counts)
    tokens[~mask] = torch.nan
    order = torch.randperm(max(counts), generator=source)
    found, other = set_keys(tokens, mask, most), set_keys(tokens[:, order], mask[:, order], most)
    for bag, count in enumerate(counts):
        chosen = found.tokens[bag, found.mask[bag]]
        assert len(chosen.unique(dim=0)) == min(count, most)
        assert (chosen[:, None] == tokens[bag, :count]).all(2).any(1).all()
        assert torch.equal(chosen.unique(dim=0), other.tokens[bag, other.mask[bag]].unique(dim=0))
        alone = set_keys(tokens[bag : bag + 1, :count], mask[bag : bag + 1, :count], most)
        assert torch.equal(alone.tokens[0].unique(dim=0), chosen.unique(dim=0))


def test_keys_are_as_dense_as_tokens() -> None:
    """Three in four tokens lie in one place, and so do three in four keys."""
    tokens = torch.cat([torch.full((1, 300, 4), 1.0), torch.full((1, 100, 4), -1.0)], dim=1)
    keys = set_keys(tokens, torch.ones(1, 400, dtype=torch.bool), 8).tokens[0, :, 0]
    assert keys.sort().values.tolist() == [-1.0] * 2 + [1.0] * 6


def test_an_empty_bag_has_no_keys() -> None:
    keys = set_keys(torch.full((1, 4, 2), torch.nan), torch.zeros(1, 4, dtype=torch.bool), 2)
    assert not keys.mask.any()
    assert torch.equal(keys.tokens, torch.zeros(1, 2, 2))


def test_gradients_reach_the_chosen_tokens_only() -> None:
    tokens = draw(1, 1, 9, 3).requires_grad_()
    keys = set_keys(tokens, torch.ones(1, 9, dtype=torch.bool), 4)
    keys.tokens.sum().backward()
    expected = torch.zeros(9).index_fill(0, keys.chosen[0], 1.0)
    assert torch.equal(tokens.grad[0].to(expected), expected[:, None].expand(-1, 3))
