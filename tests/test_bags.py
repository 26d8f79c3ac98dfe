"""Bags and grids: coordinates to cells, padding, maps."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, Grid, collate_bags, grid_for

few = settings(max_examples=25)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectangle(width: int, height: int) -> Tensor:
    """Every cell of a rectangle, row by row [W H, 2]."""
    index = torch.arange(width * height)
    return torch.stack([index % width, index // width], dim=-1)


@given(
    width=st.integers(1, 7),
    height=st.integers(1, 7),
    step=st.sampled_from([1.0, 0.25, 224.0, 1e5]),
    origin=st.integers(-(10**6), 10**6),
    seed=st.integers(0, 10**6),
)
@few
def test_coordinates_of_any_origin_and_unit_come_back_as_cells(
    width: int, height: int, step: float, origin: int, seed: int
) -> None:
    cells = rectangle(width, height)
    cells = cells[torch.randperm(len(cells), generator=seeded(seed))]
    coords = cells.double() * step + origin
    explicit = Grid.from_coords(coords, step=step)
    assert torch.equal(explicit.cells[0], cells)
    assert explicit.shapes == ((width, height),)
    assert explicit.mask.all()
    inferred = Grid.from_coords(coords)
    assert torch.equal(inferred.cells, explicit.cells)
    assert inferred.shapes == explicit.shapes


@given(tokens=st.integers(1, 30), jitter=st.floats(0, 0.45), seed=st.integers(0, 10**6))
@few
def test_jitter_of_less_than_half_a_step_is_rounded_away(tokens: int, jitter: float, seed: int) -> None:
    source = seeded(seed)
    cells = torch.randint(0, 6, (tokens, 2), generator=source)
    corner = torch.tensor([[0, 0]])  # holds the origin still
    cells = torch.cat([corner, cells])
    noise = torch.rand(cells.shape, generator=source) * jitter
    noise[0] = 0
    assert torch.equal(Grid.from_coords((cells + noise) * 224, step=224).cells[0], cells)


def test_step_is_the_commonest_gap_and_in_a_tie_the_smaller() -> None:
    holes = torch.tensor([[0, 0], [448, 0], [672, 0], [896, 224], [1568, 448]])
    assert Grid.from_coords(holes).cells[0].tolist() == [[0, 0], [2, 0], [3, 0], [4, 1], [7, 2]]
    assert Grid.from_coords(torch.tensor([[0, 0], [10, 0], [30, 0]])).shapes == ((4, 1),)


@given(pieces=st.integers(2, 8), seed=st.integers(0, 10**6))
@few
def test_pieces_of_tissue_on_lattices_of_their_own_have_one_step(pieces: int, seed: int) -> None:
    source = seeded(seed)
    corners = torch.randint(0, 10**3, (pieces, 1, 2), generator=source)
    corners[..., 0] += 4000 * torch.arange(pieces)[:, None]  # beside each other
    coords = (corners + 256 * rectangle(9, 6)).flatten(0, 1)
    extent = (coords.amax(0) - coords.amin(0)) / 256
    width, height = Grid.from_coords(coords).shapes[0]
    assert abs(width - 1 - extent[0]) <= 0.5
    assert abs(height - 1 - extent[1]) <= 0.5


@given(side=st.integers(5, 60), share=st.floats(0.02, 1), seed=st.integers(0, 10**6))
@few
def test_patches_drawn_from_a_lattice_have_its_step(side: int, share: float, seed: int) -> None:
    lattice = 256 * rectangle(side, side)
    drawn = lattice[torch.rand(side**2, generator=seeded(seed)) < share]
    if len(drawn) >= 20:
        width, height = Grid.from_coords(drawn).shapes[0]
        assert ((drawn.amax(0) - drawn.amin(0)) // 256 + 1).tolist() == [width, height]


@pytest.mark.parametrize(
    "coords",
    [
        torch.tensor([(256 * x, 256 * y) for x in range(20) for y in range(20) if (x + y) % 2 == 0]),
        torch.tensor([(100 * x + 50 * (y % 2), round(86.6 * y)) for x in range(20) for y in range(20)]),
        torch.tensor([(256 * (i + j), 256 * i) for i in range(30) for j in (0, 2)]),
    ],
    ids=["checkerboard", "hexagons", "band"],
)
def test_tokens_of_staggered_rows_have_cells_of_their_own(coords: Tensor) -> None:
    assert len(torch.unique(Grid.from_coords(coords).cells[0], dim=0)) == len(coords)


def test_halves_of_a_step_all_go_one_way() -> None:
    halves = torch.stack([torch.arange(10) * 112, torch.zeros(10, dtype=torch.int64)], 1)
    assert Grid.from_coords(halves, step=224).cells[0, :, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_slides_of_a_million_pixels_lose_no_cell(dtype: torch.dtype) -> None:
    coords = (rectangle(3, 2) * 224 + torch.tensor([1_000_001, 7])).to(dtype)
    assert torch.equal(Grid.from_coords(coords, step=224).cells[0], rectangle(3, 2))


def test_duplicated_coordinates_share_a_cell() -> None:
    grid = Grid.from_coords(torch.tensor([[5, 5], [5, 5], [5, 5]]))
    assert grid.cells.tolist() == [[[0, 0]] * 3]
    assert grid.shapes == ((1, 1),)
    tokens = torch.tensor([[[1.0], [2.0], [6.0]]])
    maps, count = grid.to_map(tokens)
    assert maps.tolist() == [[[[3.0]]]]
    assert count.tolist() == [[[3.0]]]


@given(tokens=st.integers(1, 12), real=st.integers(0, 12), seed=st.integers(0, 10**6))
@few
def test_coordinates_of_padding_do_not_matter(tokens: int, real: int, seed: int) -> None:
    source = seeded(seed)
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
    mask = torch.rand(batch, tokens, generator=seeded(seed)) < 0.6
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
        # As many cells as tokens, and yet a hole: behind padding, under a duplicate.
        (Grid.from_mask(torch.tensor([[True, True, True, False]])), False),
        (Grid.from_coords(torch.tensor([[0, 0], [0, 0], [1, 0], [1, 1]])), False),
        # Column by column: token n does not lie on cell n.
        (Grid.from_coords(rectangle(2, 2).flip(1)), False),
    ],
)
def test_full_means_token_n_lies_on_cell_n_of_every_bag(grid: Grid, full: bool) -> None:
    assert grid.full is full
    assert grid.expand(len(grid.shapes)).full is full


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
    source = seeded(seed)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_thousand_tokens_in_one_cell_are_counted_in_low_precision(dtype: torch.dtype) -> None:
    grid = Grid.from_coords(torch.zeros(1000, 2))
    maps, count = grid.to_map(torch.full((1, 1000, 1), 80.0, dtype=dtype))
    assert maps.dtype == dtype
    assert maps.item() == 80
    assert count.item() == 1000


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 10**6))
@few
def test_collated_bags_come_back_unchanged(counts: list[int], seed: int) -> None:
    source = seeded(seed)
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


def test_a_slide_without_coordinates_lies_on_a_square() -> None:
    bag = Bag.from_slide(torch.randn(6, 2, dtype=torch.float16))
    assert bag.grid.shapes == ((3, 2),)
    assert bag.patches.dtype == torch.float16


def test_bags_and_grids_move_with_their_parts() -> None:
    bag = Bag.from_slide(torch.zeros(6, 2), rectangle(3, 2)).to("meta")
    assert {bag.patches.device.type, bag.grid.cells.device.type, bag.mask.device.type} == {"meta"}
    assert bag.grid.shapes == ((3, 2),)
    assert len(bag) == 1


def test_grid_for_takes_a_grid_or_a_mask_or_neither() -> None:
    tokens, mask = torch.zeros(2, 3, 4), torch.tensor([[True, True, False], [False, False, True]])
    assert grid_for(tokens, None, None).shapes == Grid.square([3, 3]).shapes
    assert torch.equal(grid_for(tokens, None, mask).mask, mask)
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
            lambda: grid_for(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), None),
            TypeError,
            "grid must be a Grid (Grid.from_coords makes one of coordinates), got Tensor",
        ),
        (
            lambda: collate_bags([Bag.from_slide(torch.zeros(1, 2)), Bag.from_slide(torch.zeros(1, 1))]),
            ValueError,
            "bags must have one feature width, got [1, 2]",
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


def test_scattered_coordinates_are_refused_before_they_fill_the_memory() -> None:
    coords = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).mul(900).round()
    with pytest.raises(ValueError, match="give the patch size as step"):
        Grid.from_coords(coords)
    assert Grid.from_coords(coords, step=224).width <= 5
