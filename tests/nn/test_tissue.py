"""Deformable attention over holes, padding and shared cells: what is not tissue changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disentangled_mil.bags import Bag, Grid, collate_bags
from tests.support.deformable import bag_shapes, draw_bag, exact, few, poison, seeds, small_layer


@given(shapes=st.lists(bag_shapes, min_size=2, max_size=2), seed=seeds, kernel=st.sampled_from([2, 4, 6]))
@few
def test_a_bag_alone_equals_itself_in_a_batch_whatever_padding_holds(
    shapes: list[tuple[int, int, int]], seed: int, kernel: int
) -> None:
    layer = small_layer(seed, kernel_size=kernel)
    bags = [draw_bag(seed + i, *shape) for i, shape in enumerate(shapes)]
    batch = collate_bags(bags)
    patches = poison(batch, [float("nan"), float("inf"), 1e300][seed % 3]).requires_grad_()
    together = layer(patches, patches, batch.grid)
    assert (together.tokens[~batch.mask] == 0).all()
    mass, common = together.attention.mass(), together.attention.common_grid(3)
    together.tokens.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for i, bag in enumerate(bags):
        alone = bag.patches.clone().requires_grad_()
        out = layer(alone, alone, bag.grid)
        count = bag.patches.shape[1]
        torch.testing.assert_close(together.tokens[i, :count], out.tokens[0], **exact)
        torch.testing.assert_close(mass[i, :count], out.attention.mass()[0], **exact)
        torch.testing.assert_close(common[i], out.attention.common_grid(3)[0], **exact)
        out.tokens.square().sum().backward()
        torch.testing.assert_close(patches.grad[i, :count], alone.grad[0], rtol=1e-8, atol=1e-8)
        assert (patches.grad[i, count:] == 0).all()
        assert (mass[i, count:] == 0).all()
    for together_gradient, parameter in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(together_gradient, parameter.grad, rtol=1e-8, atol=1e-8)


@given(shape=bag_shapes, seed=seeds)
@few
def test_tokens_masked_in_the_middle_of_tissue_are_as_good_as_absent(shape: tuple[int, int, int], seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    mask = torch.rand(bag.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    grid = Grid(bag.grid.cells, mask, bag.grid.shapes)
    out = layer(bag.patches.masked_fill(~mask[..., None], torch.nan), bag.patches, grid)
    fewer = Grid(bag.grid.cells[:, mask[0]], mask[:, mask[0]], bag.grid.shapes)
    alone = layer(bag.patches[:, mask[0]], bag.patches[:, mask[0]], fewer)
    torch.testing.assert_close(out.tokens[:, mask[0]], alone.tokens, **exact)
    torch.testing.assert_close(out.attention.weights()[:, :, mask[0]], alone.attention.weights(), **exact)
    assert (out.attention.weights()[:, :, ~mask[0]] == 0).all()


@given(shape=bag_shapes, seed=seeds)
@few
def test_permuting_tokens_with_their_cells_permutes_the_output(shape: tuple[int, int, int], seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    shuffled = Grid(bag.grid.cells[:, order], bag.grid.mask, bag.grid.shapes)
    out = layer(bag.patches, bag.patches, bag.grid)
    other = layer(bag.patches[:, order], bag.patches[:, order], shuffled)
    torch.testing.assert_close(other.tokens, out.tokens[:, order], **exact)
    torch.testing.assert_close(other.attention.mass(), out.attention.mass()[:, order], **exact)
    torch.testing.assert_close(other.attention.key_mass(), out.attention.key_mass(), **exact)


@given(shape=bag_shapes, copies=st.integers(2, 3), seed=seeds)
@few
def test_patches_stored_several_times_change_nothing(shape: tuple[int, int, int], copies: int, seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    grid = Grid(bag.grid.cells.repeat(1, copies, 1), bag.mask.repeat(1, copies), bag.grid.shapes)
    out = layer(bag.patches, bag.patches, bag.grid)
    other = layer(bag.patches.repeat(1, copies, 1), bag.patches.repeat(1, copies, 1), grid)
    torch.testing.assert_close(other.tokens, out.tokens.repeat(1, copies, 1), **exact)
    torch.testing.assert_close(other.attention.mass() * copies, out.attention.mass().repeat(1, copies), **exact)


def test_a_key_half_in_a_hole_is_the_tissue_half_and_counts_half() -> None:
    # Two cells of context under one sample in their middle; the right one is a hole.
    layer = small_layer(offset_scale=0.0, groups=1, heads=1, kernel_size=2)
    source = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 3, 8, dtype=torch.float64, generator=source)
    cells = torch.tensor([[[0, 0], [2, 0], [3, 0]]])
    grid = Grid(cells, torch.ones(1, 3, dtype=torch.bool), ((4, 1),))
    attention = layer(tokens, tokens, grid).attention
    assert attention.sampling_positions[0, 0].tolist() == [[0.5, 0.0], [2.5, 0.0]]
    torch.testing.assert_close(attention.scores.key_logit[0, 0].exp().tolist(), [0.5, 1.0])
    halves = torch.stack([tokens[0, 0], tokens[0, 1:].mean(0)])
    torch.testing.assert_close(attention.scores.key[0, 0], layer.to_k(halves.T).T, **exact)
    share = attention.key_mass()[0, 0]
    torch.testing.assert_close(attention.mass()[0], torch.stack([share[0], share[1] / 2, share[1] / 2]), **exact)


def test_a_bag_whose_samples_all_fall_into_holes_attends_to_the_nearest_tissue() -> None:
    layer = small_layer(downsample=4, kernel_size=4, offset_scale=0.0)
    corners = torch.tensor([[0, 0], [3, 3]])  # the one reference point lies at (1.5, 1.5), and rounds to (2, 2)
    bag = Bag.from_slide(torch.randn(2, 8, dtype=torch.float64), corners, step=1)
    patches = bag.patches.clone().requires_grad_()
    out = layer(patches, patches, bag.grid)
    value = layer.to_v(patches[:, 1, :, None])[..., 0]
    torch.testing.assert_close(out.tokens[0], layer.to_out(value).expand(2, -1))
    assert out.attention.mass().tolist() == [[0.0, 1.0]]
    (out.tokens.sum() + out.attention.common_grid(2).square().sum()).backward()
    assert patches.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@given(shapes=st.lists(bag_shapes, min_size=1, max_size=3), seed=seeds, resolution=st.integers(1, 5))
@few
def test_attention_mass_is_a_distribution_over_tokens_keys_and_common_cells(
    shapes: list[tuple[int, int, int]], seed: int, resolution: int
) -> None:
    layer = small_layer(seed)
    batch = collate_bags([draw_bag(seed + i, *shape) for i, shape in enumerate(shapes)])
    attention = layer(batch.patches, batch.patches, batch.grid).attention
    mass = attention.mass()
    assert (mass >= 0).all()
    assert (mass[~batch.mask] == 0).all()
    # One for every head that sampled any tissue, nothing for a head that missed it all.
    per_head = (attention.scores.key_logit > -torch.inf).any(-1).repeat_interleave(2, dim=1).double()  # [B, H]
    torch.testing.assert_close(mass.sum(1), per_head.mean(1), **exact)
    torch.testing.assert_close(attention.key_mass().sum(2), per_head, **exact)
    common = attention.common_grid(resolution)
    assert common.shape == (len(shapes), 4, resolution**2)
    torch.testing.assert_close(common.sum(2), per_head, **exact)
    assert attention.full is batch.grid.full


@pytest.mark.parametrize("empty_queries", [True, False])
def test_an_empty_bag_gives_finite_results_and_gradients(empty_queries: bool, generator: torch.Generator) -> None:
    layer = small_layer().train()
    tokens = torch.randn(2, 5, 8, dtype=torch.float64, generator=generator).requires_grad_()
    real = torch.tensor([[True] * 5, [False] * 5])
    grid, queries = Grid.from_mask(real), Grid.from_mask(real | (not empty_queries))
    out = layer(tokens, tokens, queries, grid)
    assert out.tokens.isfinite().all()
    bias = layer.to_out.bias.detach().expand(5, -1)
    torch.testing.assert_close(out.tokens[1], torch.zeros(5, 8).double() if empty_queries else bias)
    assert (out.attention.mass()[1] == 0).all()
    assert (out.attention.weights()[1] == 0).all()
    total = out.tokens.sum() + out.attention.mass().square().sum() + out.attention.common_grid(2).square().sum()
    total.backward()
    assert tokens.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_full_grid_is_no_exception(generator: torch.Generator) -> None:
    layer = small_layer()
    tokens = torch.randn(2, 42, 8, dtype=torch.float64, generator=generator).requires_grad_()
    grid = Grid.from_coords(torch.cartesian_prod(torch.arange(6), torch.arange(7)).flip(1)).expand(2)
    results = []
    for full in (True, False):
        out = layer(tokens, tokens, Grid(grid.cells, grid.mask, grid.shapes, full=full))
        loss = out.tokens.square().sum() + (out.attention.mass() * torch.arange(42)).sum()
        gradients = torch.autograd.grad(loss, [tokens, *layer.parameters()])
        results.append([out.tokens, out.attention.mass(), out.attention.sampling_positions, *gradients])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_a_token_that_is_nan_is_seen_by_all_on_a_full_grid(backend: str, generator: torch.Generator) -> None:
    layer = small_layer(backend=backend)
    tokens = torch.randn(1, 36, 8, dtype=torch.float64, generator=generator)
    tokens[0, 7] = torch.nan
    assert layer(tokens, tokens).tokens.isnan().all()
