"""Bags and batches of them."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.bags import Bag, Grid, TokenSet, collate_bags

few = settings(max_examples=25)


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 10**6))
@few
def test_collated_bags_come_back_unchanged(counts: list[int], seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    slides = [
        Bag.from_slide(torch.randn(n, 3, generator=source), torch.randint(0, 4, (n, 2), generator=source), step=1)
        for n in counts
    ]
    batch = collate_bags(slides)
    assert len(batch) == len(counts)
    assert batch.patches.shape == (len(counts), max(counts), 3)
    for bag, (slide, count) in enumerate(zip(slides, counts, strict=True)):
        assert batch.mask[bag].tolist() == [True] * count + [False] * (max(counts) - count)
        assert torch.equal(batch.patches[bag, :count], slide.patches[0])
        assert torch.equal(batch.grid.cells[bag, :count], slide.grid.cells[0])
        assert batch.grid.shapes[bag] == slide.grid.shapes[0]
        assert (batch.patches[bag, count:] == 0).all()
    again = collate_bags([batch, slides[0]])
    assert again.grid.shapes == (*batch.grid.shapes, slides[0].grid.shapes[0])


def test_slides_without_coordinates_are_sets() -> None:
    bag = Bag.from_slide(torch.randn(6, 2, dtype=torch.float16))
    assert isinstance(bag.grid, TokenSet)
    assert bag.patches.dtype == torch.float16
    batch = collate_bags([bag, Bag(torch.ones(2, 3, 2))])
    assert isinstance(batch.grid, TokenSet)
    assert batch.mask.sum(1).tolist() == [6, 3, 3]
    assert isinstance(batch.to("meta").grid, TokenSet)


def test_coordinates_are_left_out_by_hand() -> None:
    placed = Bag.from_slide(torch.ones(3, 2), torch.arange(6).view(3, 2))
    assert len(collate_bags([Bag(placed.patches, TokenSet(placed.mask)), Bag(torch.ones(1, 5, 2))])) == 2


def test_bags_and_grids_move_with_their_parts() -> None:
    bag = Bag.from_slide(torch.zeros(6, 2), torch.cartesian_prod(torch.arange(3), torch.arange(2))).to("meta")
    assert {bag.patches.device.type, bag.grid.cells.device.type, bag.mask.device.type} == {"meta"}
    assert bag.grid.shapes == ((3, 2),)
    assert len(bag) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Bag(torch.zeros(1, 3, 2), Grid.square(4)),
            ValueError,
            "patches must have shape [B, N, C] = [1, 4, C], got [1, 3, 2]",
        ),
        (
            lambda: Bag.from_slide(torch.zeros(0, 2)),
            ValueError,
            "features must hold at least one patch, got none",
        ),
        (
            lambda: Bag.from_slide(torch.zeros(3, 2), torch.zeros(4, 2)),
            ValueError,
            "coords must have shape [N, 2] = [3, 2], got [4, 2]",
        ),
        (lambda: collate_bags([]), ValueError, "bags must hold at least one bag, got none"),
        (
            lambda: collate_bags(Bag.from_slide(torch.zeros(3, 2)) for _ in ""),
            ValueError,
            "bags must hold at least one bag, got none",
        ),
        (lambda: collate_bags([torch.zeros(3)]), TypeError, "bags must hold values of type Bag, got Tensor"),
        (
            lambda: collate_bags([Bag.from_slide(torch.zeros(1, 2)), Bag.from_slide(torch.zeros(1, 1))]),
            ValueError,
            "bags must have one feature width, got [1, 2]",
        ),
        (
            lambda: collate_bags([*[Bag(torch.zeros(1, 4, 2), Grid.square(4))] * 2, Bag(torch.zeros(1, 4, 2))]),
            ValueError,
            "bags must all have coordinates or all have none, got bags[0] with coordinates and bags[2] without",
        ),
    ],
)
def test_refusals_name_the_argument_the_requirement_and_what_came(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
