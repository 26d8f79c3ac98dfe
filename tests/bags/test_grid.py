"""Grids: layouts, padding, maps."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Grid, TokenSet, grid_for

few = settings(max_examples=25)


def rectangle(width: int, height: int) -> Tensor:
    """Every cell of a rectangle, row by row [W H, 2]."""
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)


def test_another_default_device_is_not_taken() -> None:
    with torch.device("meta"):
        grid = Grid.from_coords(torch.tensor([[0, 0], [3, 0], [3, 3]], device="cpu"))
        assert {tensor.device.type for tensor in (grid.cells, grid.mask, grid.count, grid.nearest, grid.sizes)} == {
            "cpu"
        }


def test_sizes_are_made_once() -> None:
    grid = Grid.square([5, 9])
    assert grid.sizes is grid.sizes
    assert grid.sizes.tolist() == [[3, 2], [3, 3]]
    assert Grid.square(5).expand(2).sizes.tolist() == [[3, 2]] * 2


@given(tokens=st.integers(1, 12), real=st.integers(0, 12), seed=st.integers(0, 10**6))
@few
def test_coordinates_of_padding_do_not_matter(tokens: int, real: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, 5, (1, tokens, 2), generator=source).double() * 10
    mask = torch.randperm(tokens, generator=source)[None] < real
    grid = Grid.from_coords(coords, mask=mask, step=10)
    other = Grid.from_coords(coords.masked_fill(~mask[..., None], float("nan")), mask=mask, step=10)
    assert torch.equal(grid.cells, other.cells)
    assert grid.shapes == other.shapes
    assert (grid.cells[~mask] == 0).all()
    if real:
        alone = Grid.from_coords(coords[mask], step=10)
        assert torch.equal(alone.cells[0], grid.cells[mask])
        assert alone.shapes == grid.shapes
    else:
        assert grid.shapes == ((1, 1),)


def test_one_bag_takes_a_flat_mask() -> None:
    coords, mask = torch.tensor([[9, 9], [0, 0], [1, 0]]), torch.tensor([False, True, True])
    grid = Grid.from_coords(coords, mask=mask)
    assert grid.cells.tolist() == [[[0, 0], [0, 0], [1, 0]]]
    assert grid.mask.tolist() == [[False, True, True]]


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=4))
@few
def test_square_layouts_hold_every_token_once_and_waste_less_than_a_row(counts: list[int]) -> None:
    grid = Grid.square(counts)
    assert grid.mask.sum(1).tolist() == counts
    for (width, height), count, cells in zip(grid.shapes, counts, grid.cells, strict=True):
        assert torch.equal(cells[:count], rectangle(width, height)[:count])
        assert (width - 1) ** 2 < count <= width * height < count + width
        assert (cells[count:] == 0).all()
    assert (grid.width, grid.height) == (max(w for w, _ in grid.shapes), max(h for _, h in grid.shapes))
    assert grid.sizes.tolist() == [list(shape) for shape in grid.shapes]


@given(tokens=st.integers(1, 20), batch=st.integers(1, 3), seed=st.integers(0, 10**6))
@few
def test_masked_layouts_equal_those_of_the_real_tokens_alone(tokens: int, batch: int, seed: int) -> None:
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)) < 0.6
    grid = Grid.from_mask(mask)
    for bag in range(batch):
        count = int(mask[bag].sum())
        if count:
            alone = Grid.square(count)
            assert torch.equal(grid.cells[bag, mask[bag]], alone.cells[0])
            assert grid.shapes[bag] == alone.shapes[0]
        else:
            assert grid.shapes[bag] == (1, 1)


@pytest.mark.parametrize(
    ("grid", "full"),
    [
        (Grid.square(9), True),
        (Grid.square([4, 4]), True),
        (Grid.from_coords(rectangle(3, 2)), True),
        (Grid.square(8), False),
        (Grid.square([4, 9]), False),
        # The numbers of cells and tokens agree, and yet there is a hole: behind padding, under a duplicate.
        (Grid.from_mask(torch.tensor([[True, True, True, False]])), False),
        (Grid.from_coords(torch.tensor([[0, 0], [0, 0], [1, 0], [1, 1]])), False),
        # Column by column: token n does not lie on cell n.
        (Grid.from_coords(rectangle(2, 2).flip(1)), False),
    ],
)
def test_full_means_token_n_lies_on_cell_n_of_every_bag(grid: Grid, full: bool) -> None:
    assert grid.full is full
    assert grid.expand(len(grid.shapes)).full is full


@pytest.mark.parametrize("grid", [Grid.square(9), Grid.square([6, 6]), Grid.from_coords(rectangle(3, 2))])
def test_maps_of_a_full_grid_are_those_of_any(grid: Grid) -> None:
    tokens = torch.randn(*grid.mask.shape, 4, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    tokens = tokens.contiguous().transpose(0, 1)
    anyhow = Grid(grid.cells, grid.mask, grid.shapes, full=False)
    for found, expected in zip(grid.to_map(tokens), anyhow.to_map(tokens), strict=True):
        assert torch.equal(found, expected)


def test_one_grid_serves_a_batch() -> None:
    grid = Grid.square(5)
    assert grid.expand(1) is grid
    wide = grid.expand(3)
    assert wide.cells.shape == (3, 5, 2)
    assert wide.shapes == grid.shapes * 3
    assert torch.equal(wide.mask, grid.mask.expand(3, -1))


@given(batch=st.integers(1, 3), tokens=st.integers(1, 15), side=st.integers(1, 4), seed=st.integers(0, 10**6))
@few
def test_a_map_holds_the_mean_of_the_real_tokens_of_each_cell(batch: int, tokens: int, side: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, side, (batch, tokens, 2), generator=source)
    mask = torch.rand(batch, tokens, generator=source) < 0.7
    grid = Grid(cells, mask, ((side, side + 1),) * batch)  # the last row stays empty
    features = torch.randn(batch, tokens, 3, dtype=torch.float64, generator=source)
    poisoned = features.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    maps, count = grid.to_map(poisoned)
    assert maps.shape == (batch, side + 1, side, 3)
    for bag in range(batch):
        for y in range(side + 1):
            for x in range(side):
                here = mask[bag] & (cells[bag] == torch.tensor([x, y])).all(-1)
                assert count[bag, y, x] == here.sum()
                mean = features[bag, here].mean(0) if here.any() else torch.zeros(3, dtype=torch.float64)
                torch.testing.assert_close(maps[bag, y, x], mean)
    maps.sum().backward()
    assert poisoned.grad is not None
    assert (poisoned.grad[~mask] == 0).all()
    assert poisoned.grad.isfinite().all()


@pytest.mark.parametrize(
    "grid", [Grid.square(6), Grid.from_coords(torch.tensor([[0, 0], [3, 1], [3, 1], [1, 1]]), step=1)]
)
def test_groups_of_channels_have_the_means_of_the_map(grid: Grid) -> None:
    batch, tokens = grid.mask.shape
    features = torch.randn(batch, 3, tokens, 2, generator=torch.Generator().manual_seed(0))
    means = grid.cell_means(features)
    maps, _ = grid.to_map(features.transpose(1, 2).flatten(2))
    assert torch.equal(means.transpose(1, 2).flatten(2), maps.flatten(1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_thousand_tokens_in_one_cell_are_counted_in_low_precision(dtype: torch.dtype) -> None:
    grid = Grid(torch.zeros(1, 1000, 2, dtype=torch.int64), torch.ones(1, 1000, dtype=torch.bool), ((1, 1),))
    maps, count = grid.to_map(torch.full((1, 1000, 1), 80.0, dtype=dtype))
    assert maps.dtype == dtype
    assert maps.item() == 80
    assert count.item() == 1000


def test_grid_for_takes_a_grid_or_a_set_or_a_mask_or_nothing() -> None:
    tokens, mask = torch.zeros(2, 3, 4), torch.tensor([[True, True, False], [False, False, True]])
    for found, expected in (
        (grid_for(tokens, None, None), torch.ones_like(mask)),
        (grid_for(tokens, None, mask), mask),
        (grid_for(tokens, TokenSet.of(3), None), torch.ones_like(mask)),
    ):
        assert isinstance(found, TokenSet)
        assert torch.equal(found.mask, expected)
    grid = Grid.from_mask(mask)
    assert grid_for(tokens, grid, None) is grid
    assert grid_for(tokens, Grid.square(3), None).mask.shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Grid(torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool), ((1, 1),)),
            TypeError,
            "cells must be an int64 tensor, got torch.float32",
        ),
        (
            lambda: Grid(torch.zeros(1, 2, 3).long(), torch.ones(1, 2, dtype=torch.bool), ((1, 1),)),
            ValueError,
            "cells must have shape [B, N, 2], got [1, 2, 3]",
        ),
        (
            lambda: Grid(torch.zeros(1, 2, 2).long(), torch.ones(1, 3, dtype=torch.bool), ((1, 1),)),
            ValueError,
            "mask must have shape [B, N] = [1, 2], got [1, 3]",
        ),
        (
            lambda: Grid(torch.zeros(1, 2, 2).long(), torch.ones(1, 2, dtype=torch.bool), ()),
            ValueError,
            "shapes must hold B = 1 (width, height) pairs, got 0",
        ),
        (
            lambda: Grid.from_coords(torch.zeros(0, 2)),
            ValueError,
            "cells must hold at least one bag and one token per bag (masked out if the bag is empty), got [1, 0, 2]",
        ),
        (
            lambda: Grid.from_mask(torch.zeros(0, 3, dtype=torch.bool)),
            ValueError,
            "cells must hold at least one bag and one token per bag (masked out if the bag is empty), got [0, 3, 2]",
        ),
        (
            lambda: Grid.from_coords([[0, 0]]),  # type: ignore[arg-type]
            TypeError,
            "coords must be a tensor of shape [B, N, 2], got list",
        ),
        (
            lambda: Grid.from_coords(torch.zeros(3, 2), mask=torch.ones(3)),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda: Grid.from_coords(torch.zeros(3, 2), step=0),
            ValueError,
            "step must be positive and finite, got 0",
        ),
        (
            lambda: Grid.from_coords(torch.zeros(3, 2), step=float("nan")),
            ValueError,
            "step must be positive and finite, got nan",
        ),
        (
            lambda: Grid.from_coords(torch.tensor([[0.0, float("nan")]])),
            ValueError,
            "coords must be finite where mask is True, got NaN or infinity",
        ),
        (
            lambda: Grid.from_coords(torch.tensor([[0.0, 0.0], [0.001, 0.002], [9000.0, 9000.0]])),
            ValueError,
            "coords must lie on a grid: 3 tokens would span 9000001 x 9000001 cells of side 0.001; "
            "give the patch size as step",
        ),
        (lambda: Grid.from_mask(torch.ones(2, 3)), TypeError, "mask must be a bool tensor"),
        (lambda: Grid.square(0), ValueError, "tokens must be at least 1, got 0"),
        (lambda: Grid.square([2, -1]), ValueError, "tokens must be at least 1, got -1"),
        (lambda: Grid.square(True), TypeError, "tokens must be an integer, got bool"),
        (
            lambda: Grid.square([]),
            ValueError,
            "tokens must hold the number of tokens of at least one bag, got none",
        ),
        (
            lambda: Grid.square([1, 2]).expand(3),
            ValueError,
            "grid must have B = 3 bags (or one for all), got 2",
        ),
        (
            lambda: Grid.square(4).to_map(torch.zeros(1, 3, 2)),
            ValueError,
            "tokens must have shape [B, N, C] = [1, 4, C], got [1, 3, 2]",
        ),
        (
            lambda: Grid.square(4).cell_means(torch.zeros(1, 3, 4)),
            ValueError,
            "tokens must have shape [B, G, N, C] = [1, G, 4, C], got [1, 3, 4]",
        ),
        (
            lambda: grid_for(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), None),
            TypeError,
            "grid must be a Grid (Grid.from_coords makes one of coordinates) or a TokenSet, got Tensor",
        ),
        (
            lambda: Grid.from_coords(torch.ones(3, 2, dtype=torch.bool)),
            TypeError,
            "coords must be a tensor of real numbers, got torch.bool",
        ),
        (
            lambda: Grid.from_coords(torch.ones(3, 2, dtype=torch.complex64)),
            TypeError,
            "coords must be a tensor of real numbers, got torch.complex64",
        ),
        (
            lambda: grid_for(torch.zeros(1, 4, 2), Grid.square(4), torch.ones(1, 4, dtype=torch.bool), "here"),
            ValueError,
            "here already holds a mask: give either here or mask, not both",
        ),
        (
            lambda: grid_for(torch.zeros(1, 4, 2), None, torch.ones(1, 3, dtype=torch.bool)),
            ValueError,
            "mask must have shape [B, N] = [1, 4], got [1, 3]",
        ),
        (
            lambda: grid_for(torch.zeros(1, 4, 2), Grid.square(3), None, "here"),
            ValueError,
            "here.mask must have shape [B, N] = [1, 4], got [1, 3]",
        ),
    ],
)
def test_refusals_name_the_argument_the_requirement_and_what_came(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize(
    ("cells", "shapes", "message"),
    [
        (
            [[0, 0], [3, 0]],
            ((2, 2),),
            "cells must lie inside of their bag's shape where mask is True, got some outside",
        ),
        (
            [[0, 0], [0, -1]],
            ((2, 2),),
            "cells must lie inside of their bag's shape where mask is True, got some outside",
        ),
        ([[0, 0], [0, 0]], ((0, 2),), "shapes must be pairs of at least 1 x 1 cells, got ((0, 2),)"),
    ],
)
def test_cells_outside_of_their_shape_are_refused(cells, shapes, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Grid(torch.tensor([cells]), torch.ones(1, 2, dtype=torch.bool), shapes)
