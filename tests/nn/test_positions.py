"""Positions measured from cell centers: where reference points and samples lie, and what they read."""

from copy import deepcopy

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from disentangled_mil.bags import Grid
from disentangled_mil.nn.tissue import tissue_corners
from tests.support.deformable import bag_shapes, draw_bag, exact, few, seeds, small_layer


@given(width=st.integers(1, 12), height=st.integers(1, 12), downsample=st.integers(1, 4), extra=st.sampled_from([0, 2]))
@few
def test_reference_points_stay_where_they_are_without_offsets(
    width: int, height: int, downsample: int, extra: int
) -> None:
    layer = small_layer(downsample=downsample, kernel_size=downsample + extra, offset_scale=0)
    index = torch.arange(width * height)
    grid = Grid.from_coords(torch.stack([index % width, index // width], dim=-1))
    tokens = torch.randn(1, width * height, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    attention = layer(tokens, tokens, grid).attention
    columns, rows = (s // downsample if s >= downsample + extra else s for s in (width, height))
    assert attention.scores.key.shape[2] == columns * rows
    coarse = torch.stack([torch.arange(columns * rows) % columns, torch.arange(columns * rows) // columns], dim=-1)
    assert torch.equal(attention.coarse_positions[0, 0], coarse.double())
    spread = (2 * coarse.double() + 1) / torch.tensor([columns, rows]) - 1
    torch.testing.assert_close(attention.scores.key_position[0, 1], spread, **exact)
    # Reference points lie evenly: their mean is the middle of the rectangle.
    middle = (torch.tensor([width, height]).double() - 1) / 2
    torch.testing.assert_close(attention.sampling_positions[0, 0].mean(0), middle, **exact)
    torch.testing.assert_close(attention.scores.key_logit, torch.zeros_like(attention.scores.key_logit), **exact)


def test_the_published_sizes_give_144_keys() -> None:
    layer = small_layer(downsample=4)
    assert layer.kernel_size == 6
    tokens = torch.zeros(1, 2500, 8, dtype=torch.float64)
    assert layer(tokens, tokens, Grid.square(2500)).attention.scores.key.shape[2] == 144


@given(shape=bag_shapes, scale=st.sampled_from([0.0, 1.0, 100.0]), seed=seeds)
@few
def test_samples_are_taken_inside_the_rectangle_and_carry_tissue_only(
    shape: tuple[int, int, int], scale: float, seed: int
) -> None:
    layer, bag = small_layer(seed, offset_scale=scale), draw_bag(seed, *shape)
    attention = layer(bag.patches, bag.patches, bag.grid).attention
    positions = attention.sampling_positions
    assert ((positions >= 0) & (positions <= bag.grid.sizes[:, None, None] - 1)).all()
    assert (attention.scores.key_position.abs() < 1).all()
    assert (attention.scores.key_logit <= 1e-12).all()


@given(shape=bag_shapes, other=bag_shapes, seed=seeds)
@few
def test_queries_may_lie_on_another_grid_than_the_context(
    shape: tuple[int, int, int], other: tuple[int, int, int], seed: int
) -> None:
    layer = small_layer(seed, downsample=1, kernel_size=1, offset_scale=0)
    bag, context = draw_bag(seed, *shape), draw_bag(seed + 1, *other)
    out = layer(bag.patches, context.patches, bag.grid, context.grid)
    assert out.tokens.shape == bag.patches.shape
    assert out.attention.mass().shape == context.mask.shape
    # The reference points lie at the same relative places of both rectangles.
    there, here = (grid.sizes[0].double() for grid in (context.grid, bag.grid))
    relative = (out.attention.coarse_positions[0, 0] + 0.5) / here * there - 0.5
    expected = torch.minimum(relative.clamp(min=0), there - 1)
    torch.testing.assert_close(out.attention.sampling_positions[0, 0], expected, **exact)


@given(shape=bag_shapes, seed=seeds)
@few
def test_swapping_x_and_y_in_coordinates_and_weights_changes_nothing(shape: tuple[int, int, int], seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    mirrored = deepcopy(layer)
    offsets, first = mirrored.to_offsets, mirrored.position_bias.mlp[0]
    with torch.no_grad():
        offsets.depthwise.weight.copy_(offsets.depthwise.weight.transpose(2, 3).clone())
        offsets.pointwise.weight.copy_(offsets.pointwise.weight.flip(0))
        first.weight.copy_(first.weight.flip(1))
    swapped = Grid(bag.grid.cells.flip(-1), bag.grid.mask, tuple((h, w) for w, h in bag.grid.shapes))
    out = layer(bag.patches, bag.patches, bag.grid)
    # A group without tissue under its samples takes the nearest, and of two equally near cells not the same one.
    _, share = tissue_corners(bag.grid, out.attention.sampling_positions)
    assume((share > 0).any(-1).all())
    other = mirrored(bag.patches, bag.patches, swapped)
    torch.testing.assert_close(other.tokens, out.tokens, **exact)
    torch.testing.assert_close(other.attention.mass(), out.attention.mass(), **exact)
    common = out.attention.common_grid(4).unflatten(2, (4, 4))
    torch.testing.assert_close(other.attention.common_grid(4).unflatten(2, (4, 4)), common.mT, **exact)
