"""A part of the tokens of a bag: even over the tissue, by the seed alone, on cells that stay as full."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil import Bag, Grid, TokenSet, collate_bags
from disentangled_mil.bags import spread_rows, thin


@given(count=st.integers(1, 200), most=st.integers(1, 250), placed=st.booleans(), seed=st.integers(0, 999))
def test_exactly_the_largest_number_of_different_tokens_is_chosen_by_the_seed_alone(count, most, placed, seed):
    coords = torch.randint(20, (count, 2)) if placed else None
    rows = spread_rows(count, most, coords, seed)
    assert len(rows) == min(count, most)
    assert (rows.diff() > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < count
    assert torch.equal(rows, spread_rows(count, most, coords, seed))


@given(kept=st.integers(4, 900), seed=st.integers(0, 999))
def test_every_quarter_of_the_tissue_keeps_its_share_up_to_one_token(kept, seed):
    cells = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(seed))[:1000]
    coords = torch.stack([cells % 64, cells // 64], dim=1)
    coords[:2] = torch.tensor([[0, 0], [63, 63]])
    quarter = (coords // 32) @ torch.tensor([1, 2])
    chosen = quarter[spread_rows(1000, kept, coords, seed)]
    for name in range(4):
        assert abs((chosen == name).sum() - kept / 1000 * (quarter == name).sum()) < 2


def test_tokens_on_one_place_can_be_spread():
    assert len(spread_rows(5, 2, torch.zeros(5, 2, dtype=torch.int64), 0)) == 2


@given(
    sides=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    most=st.integers(1, 60),
    placed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_thinned_bags_hold_real_tokens_of_their_own_in_order_and_small_ones_stay(sides, most, placed, seed):
    bags = []
    for number, (width, height) in enumerate(sides):
        coords = torch.cartesian_prod(torch.arange(width), torch.arange(height)) * 7
        features = torch.arange(float(len(coords)))[:, None] + 1000 * number
        bags.append(Bag.from_slide(features, coords if placed else None, step=7 if placed else None))
    thinned = thin(collate_bags(bags), most, seed=seed)
    for row, bag in enumerate(bags):
        kept = thinned.patches[row, thinned.mask[row], 0]
        count = bag.patches.shape[1]
        assert len(kept) == min(most, count)
        assert (kept.diff() > 0).all()
        assert torch.isin(kept, bag.patches[0, :, 0]).all()
        if placed and count <= most:
            assert torch.equal(thinned.grid.cells[row, :count], bag.grid.cells[0])


@given(side=st.integers(20, 60), factor=st.integers(2, 5), seed=st.integers(0, 99))
def test_cells_of_a_thinned_bag_are_as_full_as_before(side, factor, seed):
    coords = torch.cartesian_prod(torch.arange(side * factor), torch.arange(side * factor))
    bag = thin(Bag.from_slide(torch.zeros(len(coords), 1), coords), side**2, seed=seed)
    assert abs(bag.grid.width - side) <= 1
    assert abs(bag.grid.height - side) <= 1
    assert bag.grid.count.amax() <= 8


def test_a_bag_that_is_small_enough_is_the_same_object_and_an_empty_one_stays_empty():
    bag = Bag.from_slide(torch.zeros(5, 2))
    assert thin(bag, 5) is bag
    for placed in (True, False):
        large = Bag.from_slide(torch.zeros(9, 2), torch.arange(18).view(9, 2) if placed else None, step=1)
        batch = thin(collate_bags([Bag.empty(2, placed=placed), large]), 3)
        assert batch.mask.sum(1).tolist() == [0, 3]
        assert isinstance(batch.grid, Grid if placed else TokenSet)


def test_the_number_of_tokens_is_checked():
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        thin(Bag.from_slide(torch.zeros(5, 2)), 0)
