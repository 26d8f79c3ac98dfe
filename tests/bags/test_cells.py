"""From coordinates to cells."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, Grid, thin

few = settings(max_examples=25)


def rectangle(width: int, height: int) -> Tensor:
    """Every cell of a rectangle, row by row [W H, 2]."""
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)


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
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))]
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
    source = torch.Generator().manual_seed(seed)
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
    source = torch.Generator().manual_seed(seed)
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
    drawn = lattice[torch.rand(side**2, generator=torch.Generator().manual_seed(seed)) < share]
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


def jittered(coords: Tensor, most: float) -> Tensor:
    noise = torch.rand(coords.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return coords + (2 * noise - 1) * most


def test_tokens_off_their_rows_need_the_step() -> None:
    coords = jittered(224 * rectangle(30, 20), 2.24).round()
    with pytest.raises(ValueError, match="give the patch size as step"):
        Grid.from_coords(coords)
    assert Grid.from_coords(coords, step=224).shapes == ((30, 20),)


def test_rows_and_columns_off_their_places_keep_their_cells() -> None:
    cells = rectangle(30, 20)
    column, row = (jittered(224 * torch.arange(count), 2.24) for count in (30, 20))
    coords = torch.stack([column[cells[:, 0]], row[cells[:, 1]]], dim=1)
    assert torch.equal(Grid.from_coords(coords).cells[0], cells)


def test_one_token_is_one_cell() -> None:
    assert Grid.from_coords(torch.tensor([[12345.0, 67.0]])).shapes == ((1, 1),)


def test_few_tokens_whose_commonest_gap_is_several_cells_do_not_share_cells() -> None:
    coords = torch.tensor([[1, 1], [0, 3], [1, 3], [0, 6], [1, 9]])
    assert Grid.from_coords(224 * coords).cells[0].tolist() == (coords - torch.tensor([0, 1])).tolist()


def test_nearly_equal_gaps_that_all_differ_have_a_side() -> None:
    # Rows of one token each, 100 apart but for noise; two more share a cell.
    column = torch.arange(12) * 100 + torch.arange(12) ** 2 / 100
    coords = torch.stack([column, column.flip(0)], dim=1).double()
    coords = torch.cat([coords, coords[:1] + torch.tensor([[30.0, 0.0]])])
    assert Grid.from_coords(coords).mask.all()


def test_one_token_askew_does_not_halve_the_cells() -> None:
    coords = (
        224
        * torch.cartesian_prod(torch.arange(9), torch.arange(9))[
            torch.randperm(81, generator=torch.Generator().manual_seed(0))[:30]
        ]
    )
    coords = torch.cat([224 * torch.tensor([[0, 0], [8, 8]]), coords, torch.tensor([[3 * 224 + 112, 112]])])
    assert Grid.from_coords(coords).shapes == ((9, 9),)


@pytest.mark.parametrize("pitch", [224.63, 224.37, 454.36])
def test_multiples_of_a_side_that_were_rounded_keep_their_cells(pitch: float) -> None:
    coords = rectangle(600, 20)
    assert torch.equal(Grid.from_coords((coords * pitch).floor().long()).cells[0], coords)


def test_halves_of_a_step_all_go_one_way() -> None:
    halves = torch.stack([torch.arange(10) * 112, torch.zeros(10, dtype=torch.int64)], 1)
    assert Grid.from_coords(halves, step=224).cells[0, :, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


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


def test_scattered_coordinates_are_refused_before_they_fill_the_memory() -> None:
    coords = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).mul(900).round()
    with pytest.raises(ValueError, match="give the patch size as step"):
        Grid.from_coords(coords)
    assert Grid.from_coords(coords, step=224).width <= 5


@few
@given(jitter=st.sampled_from([10.0, 20.0, 40.0]), seed=st.integers(0, 2**16))
def test_jitter_is_refused_or_keeps_the_lattice(jitter: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = jitter * (2 * torch.rand(400, 2, generator=generator, dtype=torch.float64) - 1)
    coords = 224.0 * rectangle(20, 20) + noise
    with suppress(ValueError):
        assert Grid.from_coords(coords).shapes == ((20, 20),)
    assert Grid.from_coords(coords, step=224).shapes[0] in ((20, 20), (21, 20), (20, 21), (21, 21))


@pytest.mark.parametrize(("step", "cells"), [(224, 2500), (448, 676), (900, 169), (5000, 9)])
def test_a_step_of_several_patches_makes_coarser_cells(step: float, cells: int) -> None:
    grid = Grid.from_coords(rectangle(50, 50) * 224, step=step)
    assert len(torch.unique(grid.cells[0], dim=0)) == cells


def test_a_step_in_another_unit_is_refused() -> None:
    coords = rectangle(50, 40)  # numbers of cells, not pixels
    message = r"^step must be .*, got 4096: 2000 different coordinates would share 1 x 1 cells$"
    with pytest.raises(ValueError, match=message):
        Grid.from_coords(coords, step=4096)
    assert Grid.from_coords(coords[:128], step=4096).shapes == ((1, 1),)
    with pytest.warns(UserWarning, match=r"^coords put all 5 tokens on one place"):
        Grid.from_coords(coords[:1].expand(5, 2), step=4096)
    Grid.from_coords(coords[:1].expand(4, 2), step=4096)
    repeated = coords[:1].expand(2000, 2)
    with pytest.warns(UserWarning, match=r"^coords put all 2000 tokens on one place; leave them out if places are not"):
        assert Grid.from_coords(repeated, step=4096).shapes == ((1, 1),)


@pytest.mark.parametrize(
    ("padding", "tokens"),
    [(torch.zeros(75, 2), 75), (-torch.ones(5, 2), 5), (torch.tensor([[1120, 1120]]).expand(20, 2), 21)],
    ids=["zeros", "minus one", "repeated last tile"],
)
def test_padding_without_a_mask_is_warned_of(padding: Tensor, tokens: int) -> None:
    tiles = 224 * (1 + rectangle(5, 5))
    coords = torch.cat([tiles, padding])
    message = rf"^coords put the last {tokens} of {len(coords)} tokens on one place; mark them in the mask, or leave"
    with pytest.warns(UserWarning, match=message):
        Grid.from_coords(torch.stack([coords, coords.flip(0)]))
    with pytest.warns(UserWarning, match=message):
        Bag.from_slide(torch.ones(len(coords), 2), coords)
    Grid.from_coords(coords[None], mask=(torch.arange(len(coords)) < 25)[None])
    Grid.from_coords(torch.cat([tiles, padding[:3]]))  # a few tiles may repeat coordinates
    with pytest.warns(UserWarning, match=message):
        bag = Bag.from_slide(torch.ones(len(coords), 2), coords)
    # The user has said it once.
    Grid.from_coords(coords, mask=torch.ones(len(coords), dtype=torch.bool))
    thin(bag, 20)


@given(
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    share=st.floats(0.3, 1),
    pitch=st.sampled_from([1.0, 112.0, 224.63, 454.36]),
    origin=st.integers(-(10**5), 10**5),
    seed=st.integers(0, 10**6),
)
@few
def test_a_lattice_with_holes_and_rounded_coordinates_is_found_again(
    size: tuple[int, int], share: float, pitch: float, origin: int, seed: int
) -> None:
    cells = rectangle(*size)
    cells = cells[torch.rand(len(cells), generator=torch.Generator().manual_seed(seed)) < share]
    if len(cells) >= 8:
        grid = Grid.from_coords((cells * pitch).floor() + origin)
        assert torch.equal(grid.cells[0], cells - cells.amin(0))


@given(pieces=st.integers(2, 6), share=st.floats(0.6, 1), seed=st.integers(0, 10**6))
@few
def test_pieces_with_holes_and_offsets_of_their_own_keep_their_shape(pieces: int, share: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    shapes, coords = [], []
    for piece in range(pieces):
        cells = rectangle(9, 6)[torch.rand(54, generator=source) < share]
        corner = torch.randint(0, 10**3, (2,), generator=source) + torch.tensor([4000 * piece, 0])
        shapes.append(cells - cells.amin(0))
        coords.append(256 * cells + corner)
    placed = Grid.from_coords(torch.cat(coords)).cells[0].split([len(cells) for cells in shapes])
    assert all(torch.equal(cells - cells.amin(0), shape) for cells, shape in zip(placed, shapes, strict=True))


@pytest.mark.parametrize(("slide", "pitch"), [("TCGA-AD-6964", 512), ("TCGA-DC-5869", 224), ("TCGA-QG-A5YV", 224)])
def test_every_patch_of_a_real_slide_has_a_cell_of_its_own(shared: Path, slide: str, pitch: int) -> None:
    h5py = pytest.importorskip("h5py")
    (path,) = (shared / "data" / "wsi_features").glob(f"{slide}*.h5")
    with h5py.File(path) as file:
        coords = torch.from_numpy(file["coords"][:])
    assert torch.equal(Grid.from_coords(coords).cells[0], (coords - coords.amin(0)) // pitch)
    assert len(torch.unique(coords // pitch, dim=0)) == len(coords)


def test_maps_of_real_kidney_cancers_are_laid_out_tile_by_tile(shared: Path) -> None:
    with np.load(shared / "data" / "tcga_kirc" / "tilemaps.npz") as maps:
        for name in maps.files[::20]:
            rows, columns = np.nonzero(maps[name] >= 0)
            tiles = torch.from_numpy(np.stack([columns, rows], axis=1))
            assert torch.equal(Grid.from_coords(448 * tiles).cells[0], tiles - tiles.amin(0)), name
