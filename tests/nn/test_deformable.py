"""Deformable cross-attention: the released numbers, an oracle, padding, holes, tiny grids, symmetries."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, Grid, collate_bags
from disentangled_mil.models.released import ReleasedPositions
from disentangled_mil.nn import CellCenters  # noqa: F401  (in the repr of a layer)
from disentangled_mil.nn.deformable import DeformableCrossAttention, DeformableOutput

Golden = Callable[[str], dict[str, Tensor]]
few = settings(max_examples=12)
seeds = st.integers(0, 10**6)
exact: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def released_parameters(case: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Released names -> ours."""
    names = {
        "to_offsets.0.weight": "to_offsets.depthwise.weight",
        "to_offsets.0.bias": "to_offsets.depthwise.bias",
        "to_offsets.2.weight": "to_offsets.pointwise.weight",
        "rel_pos_bias.mlp.0.0.weight": "bias.mlp.0.weight",
        "rel_pos_bias.mlp.0.0.bias": "bias.mlp.0.bias",
        "rel_pos_bias.mlp.1.0.weight": "bias.mlp.2.weight",
        "rel_pos_bias.mlp.1.0.bias": "bias.mlp.2.bias",
        "rel_pos_bias.mlp.2.weight": "bias.mlp.4.weight",
        "rel_pos_bias.mlp.2.bias": "bias.mlp.4.bias",
        "to_q.weight": "to_q.weight",
        "to_k.weight": "to_k.weight",
        "to_v.weight": "to_v.weight",
        "to_out.weight": "to_out.weight",
        "to_out.bias": "to_out.bias",
    }
    return {ours: case[f"{prefix}{theirs}"] for theirs, ours in names.items()}


@pytest.mark.parametrize("name", ["g2_h8", "g4_h4", "g4_h4_r2"])
def test_released_layer_is_met_with_gradients(golden: Golden, name: str) -> None:
    case = golden(f"deformable_cross_attention_{name}")
    config = {key.removeprefix("config/"): int(case[key]) for key in case if key.startswith("config/")}
    layer = DeformableCrossAttention(
        config["dim"],
        heads=config["heads"],
        dim_head=config["dim_head"],
        groups=config["offset_groups"],
        downsample=config["downsample_factor"],
        kernel_size=config["offset_kernel_size"],
        offset_scale=config["offset_scale"],
        positions=ReleasedPositions(),
        bias="exact",
    ).double()
    layer.eval()
    parameters = dict(layer.named_parameters())
    layer.load_state_dict({k: v.reshape(parameters[k].shape) for k, v in released_parameters(case, "param/").items()})
    query = case["query_tokens"].transpose(1, 2).requires_grad_()
    value = case["value_tokens"].transpose(1, 2).requires_grad_()
    out = layer(query, value)
    exact = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(out.tokens.transpose(1, 2), case["out"], **exact)
    torch.testing.assert_close(out.attention.weights(), case["attention"], **exact)
    side = int(case["sampling_positions"].shape[-1])
    positions = out.attention.coarse_positions.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(positions, case["sampling_positions"], **exact)
    (out.tokens * case["grad_out"].transpose(1, 2)).sum().backward()
    torch.testing.assert_close(query.grad.transpose(1, 2), case["grad_query_tokens"], **exact)
    torch.testing.assert_close(value.grad.transpose(1, 2), case["grad_value_tokens"], **exact)
    for key, gradient in released_parameters(case, "grad/").items():
        torch.testing.assert_close(parameters[key].grad, gradient.reshape(parameters[key].shape), **exact)


def attend_as_released(layer: DeformableCrossAttention, query: Tensor, context: Tensor, side: int) -> Tensor:
    """The released convention by convolution and grid sampling of torch."""
    batch, groups = len(query), layer.groups

    def normalize(x: Tensor, y: Tensor, size: int) -> Tensor:
        return 2 * torch.stack([x, y], dim=-1) / max(size - 1, 1) - 1

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (layer.heads, layer.dim_head)).mT  # [B, H, N, D]

    q = layer.to_q(query.mT)
    conv, padding = layer.to_offsets.depthwise, (layer.kernel_size - layer.downsample) // 2
    windows = q.reshape(batch * groups, -1, side, side)
    hidden = F.conv2d(windows, conv.weight, conv.bias, layer.downsample, padding, groups=windows.shape[1])
    offset = layer.to_offsets.pointwise(F.gelu(hidden).movedim(1, -1)).tanh() * layer.offset_scale  # [BG, h, w, 2]
    coarse = offset.shape[1]
    rows, columns = torch.meshgrid(torch.arange(coarse), torch.arange(coarse), indexing="ij")
    places = normalize(columns + offset[..., 0], rows + offset[..., 1], coarse)
    maps = context.mT.reshape(batch * groups, -1, side, side)
    sampled = F.grid_sample(maps, places, align_corners=False).reshape(batch, -1, coarse**2)
    k, v = layer.to_k(sampled), layer.to_v(sampled)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = normalize(columns.double(), rows.double(), side).reshape(1, -1, 1, 2)
    bias = layer.bias(cells - places.reshape(batch * groups, 1, -1, 2)).movedim(-1, 1)  # [BG, H/G, N, J]
    logits = heads(q) @ heads(k).mT * layer.dim_head**-0.5 + bias.reshape(batch, layer.heads, side**2, -1)
    return layer.to_out((logits.softmax(-1) @ heads(v)).mT.flatten(1, 2).mT)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 6), (3, 5), (1, 3)], ids="r {0[0]}, kernel {0[1]}".format)
@pytest.mark.parametrize("side", [4, 5, 6, 7, 10, 13])
def test_released_positions_are_those_of_a_convolution_on_any_square(side: int, sizes: tuple[int, int]) -> None:
    downsample, kernel = sizes
    layer = small_layer(
        downsample=downsample, kernel_size=kernel, offset_scale=4.0, positions=ReleasedPositions(), bias="exact"
    )
    source = torch.Generator().manual_seed(side)
    query, context = torch.randn(2, 2, side**2, 8, dtype=torch.float64, generator=source)
    expected = attend_as_released(layer, query, context, side)
    torch.testing.assert_close(layer(query, context).tokens, expected, **exact)


def small_layer(seed: int = 0, **options: Any) -> DeformableCrossAttention:
    """A float64 layer in evaluation mode: C = 8, H = 4, G = 2."""
    sizes = {"heads": 4, "dim_head": 4, "groups": 2, "downsample": 2, "offset_scale": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = DeformableCrossAttention(8, **(sizes | options)).double().eval()
        for parameter in layer.parameters():  # larger than at initialization, so that everything counts
            torch.nn.init.normal_(parameter, std=0.5)
    return layer


def draw_bag(seed: int, tokens: int, width: int, height: int) -> Bag:
    """Tokens on random cells of a rectangle: holes, duplicates, any order."""
    source = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    coords = (torch.rand(tokens, 2, dtype=torch.float64, generator=source) * size).floor()
    features = torch.randn(tokens, 8, dtype=torch.float64, generator=source)
    return Bag.from_slide(features, coords, step=1)


def poison(bag: Bag, value: float) -> Tensor:
    """The patches of a bag with something terrible in its padding."""
    return bag.patches.masked_fill(~bag.mask[..., None], value)


bag_shapes = st.tuples(st.integers(1, 14), st.integers(1, 7), st.integers(1, 7))


def attend_by_hand(layer: DeformableCrossAttention, query: Tensor, context: Tensor, grid: Grid) -> Tensor:
    """Plain attention from every token to the mean context of every occupied cell, for one bag."""
    size = grid.sizes[0]
    cells = grid.cells[0]
    occupied = cells.unique(dim=0)
    keys = torch.stack([context[0, (cells == cell).all(1)].mean(0) for cell in occupied])
    place = [(2 * c.double() + 1) / size - 1 for c in (cells, occupied)]
    q, k, v = (to(x.T) for to, x in ((layer.to_q, query[0]), (layer.to_k, keys), (layer.to_v, keys)))
    bias = layer.bias(place[0][:, None] - place[1])  # [N, J, H / G]
    heads = []
    for head in range(layer.heads):
        rows = slice(head * layer.dim_head, (head + 1) * layer.dim_head)
        logits = q[rows].T @ k[rows] / layer.dim_head**0.5 + bias[..., head % (layer.heads // layer.groups)]
        heads.append(logits.softmax(1) @ v[rows].T)
    out: Tensor = layer.to_out(torch.cat(heads, dim=1))
    return out


@given(shape=bag_shapes, seed=seeds)
@few
def test_without_offsets_on_the_finest_grid_it_is_attention_to_every_cell(
    shape: tuple[int, int, int], seed: int
) -> None:
    layer = small_layer(seed, downsample=1, kernel_size=1, offset_scale=0)
    bag = draw_bag(seed, *shape)
    query = torch.randn(bag.patches.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    out = layer(query, bag.patches, bag.grid)
    torch.testing.assert_close(out.tokens[0], attend_by_hand(layer, query, bag.patches, bag.grid), **exact)
    if bag.patches.shape[1] == len(bag.grid.cells[0].unique(dim=0)):
        # One token per cell: the mass on a token is the mean weight of its cell's key.
        weights = out.attention.weights().mean((0, 1, 2))  # [J]
        cells = bag.grid.cells[0, :, 1] * bag.grid.width + bag.grid.cells[0, :, 0]
        torch.testing.assert_close(out.attention.mass()[0], weights[cells], **exact)


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


@given(shape=bag_shapes, seed=seeds)
@few
def test_swapping_x_and_y_in_coordinates_and_weights_changes_nothing(shape: tuple[int, int, int], seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    mirrored = copy.deepcopy(layer)
    offsets, first = mirrored.to_offsets, mirrored.bias.mlp[0]
    with torch.no_grad():
        offsets.depthwise.weight.copy_(offsets.depthwise.weight.transpose(2, 3).clone())
        offsets.pointwise.weight.copy_(offsets.pointwise.weight.flip(0))
        first.weight.copy_(first.weight.flip(1))
    swapped = Grid(bag.grid.cells.flip(-1), bag.grid.mask, tuple((h, w) for w, h in bag.grid.shapes))
    out = layer(bag.patches, bag.patches, bag.grid)
    other = mirrored(bag.patches, bag.patches, swapped)
    torch.testing.assert_close(other.tokens, out.tokens, **exact)
    torch.testing.assert_close(other.attention.mass(), out.attention.mass(), **exact)
    common = out.attention.common_grid(4).unflatten(2, (4, 4))
    torch.testing.assert_close(other.attention.common_grid(4).unflatten(2, (4, 4)), common.mT, **exact)


@given(shape=bag_shapes, copies=st.integers(2, 3), seed=seeds)
@few
def test_patches_stored_several_times_change_nothing(shape: tuple[int, int, int], copies: int, seed: int) -> None:
    layer, bag = small_layer(seed), draw_bag(seed, *shape)
    grid = Grid(bag.grid.cells.repeat(1, copies, 1), bag.mask.repeat(1, copies), bag.grid.shapes)
    out = layer(bag.patches, bag.patches, bag.grid)
    other = layer(bag.patches.repeat(1, copies, 1), bag.patches.repeat(1, copies, 1), grid)
    torch.testing.assert_close(other.tokens, out.tokens.repeat(1, copies, 1), **exact)
    torch.testing.assert_close(other.attention.mass() * copies, out.attention.mass().repeat(1, copies), **exact)


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
    assert layer(tokens, tokens).attention.scores.key.shape[2] == 144


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


def test_one_grid_serves_the_whole_batch_and_no_grid_is_a_square(generator: torch.Generator) -> None:
    layer = small_layer()
    tokens = torch.randn(3, 7, 8, dtype=torch.float64, generator=generator)
    expected = layer(tokens, tokens, Grid.square([7, 7, 7]))
    for out in (
        layer(tokens, tokens),
        layer(tokens, tokens, Grid.square(7)),
        layer(tokens, tokens, Grid.square(7), Grid.square([7, 7, 7])),
        layer(tokens, tokens, mask=torch.ones(3, 7, dtype=torch.bool)),
    ):
        torch.testing.assert_close(out.tokens, expected.tokens, **exact)
        torch.testing.assert_close(out.attention.mass(), expected.attention.mass(), **exact)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_features_of_any_type_are_converted_to_that_of_the_weights(dtype: torch.dtype) -> None:
    layer, bag = small_layer(), draw_bag(1, 12, 5, 6)
    narrow = bag.patches.to(dtype)
    out = layer(narrow, narrow, bag.grid)
    assert out.tokens.dtype == torch.float64
    torch.testing.assert_close(out.tokens, layer(narrow.double(), narrow.double(), bag.grid).tokens, **exact)
    single = small_layer().float()
    torch.testing.assert_close(single(narrow, narrow, bag.grid).tokens.double(), out.tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_of_low_precision_runs_and_keeps_positions_in_float32(dtype: torch.dtype) -> None:
    layer, bag = small_layer().to(dtype), draw_bag(1, 12, 5, 6)
    out = layer(bag.patches.to(dtype), bag.patches.to(dtype), bag.grid)
    assert out.tokens.dtype == dtype
    assert out.tokens.isfinite().all()
    assert out.attention.sampling_positions.dtype == torch.float32


def test_autocast_to_bfloat16_is_near_float32_and_trains() -> None:
    layer, bag = small_layer(offset_scale=0.5).float(), draw_bag(1, 12, 5, 6)
    patches = bag.patches.float().requires_grad_()
    expected = layer(patches, patches, bag.grid).tokens
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(patches, patches, bag.grid)
        loss = out.tokens.float().square().sum() + out.attention.mass().square().sum()
    loss.backward()
    assert out.attention.sampling_positions.dtype == torch.float32
    assert (out.attention.scores.key_logit <= 1e-6).all()
    error = (out.tokens.float() - expected).abs().max()
    assert error < 0.05 * expected.abs().max()
    torch.testing.assert_close(out.attention.mass().sum(1), torch.ones(1), rtol=0, atol=1e-5)
    assert patches.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_non_contiguous_and_expanded_tokens_are_read_alike() -> None:
    layer, bag = small_layer(), draw_bag(2, 12, 4, 5)
    strided = bag.patches.mT.contiguous().mT
    assert not strided.is_contiguous()
    genes = bag.patches[:, :1].expand(-1, 12, -1)
    torch.testing.assert_close(
        layer(genes, strided, bag.grid).tokens, layer(genes.clone(), bag.patches, bag.grid).tokens, **exact
    )


@pytest.mark.parametrize("backend", ["auto", "reference", "streaming"])
def test_gradients_of_inputs_and_parameters_are_those_of_finite_differences(backend: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = DeformableCrossAttention(
            4, heads=2, dim_head=2, groups=2, downsample=2, offset_scale=0.7, dropout=0, backend=backend
        ).double()
    bag = draw_bag(3, 6, 3, 2)
    query, context = bag.patches[..., :4].clone().requires_grad_(), bag.patches[..., 4:].clone().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(query: Tensor, context: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out: DeformableOutput = torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (query, context, bag.grid)
        )
        return out.tokens, out.attention.mass(), out.attention.common_grid(2)

    if backend == "reference":
        assert torch.autograd.gradcheck(call, (query, context, *parameters), fast_mode=True)
    else:
        assert torch.autograd.gradcheck(lambda q, c: layer(q, c, bag.grid).tokens, (query, context), fast_mode=True)


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


def test_backends_agree() -> None:
    bag = draw_bag(4, 14, 5, 5)
    dense, streamed = (
        small_layer(backend=backend)(bag.patches, bag.patches, bag.grid) for backend in ("reference", "streaming")
    )
    torch.testing.assert_close(dense.tokens, streamed.tokens, **exact)


def test_dropout_acts_in_training_only() -> None:
    bag, layer = draw_bag(4, 14, 5, 5), small_layer(dropout=0.5)
    first, second = (layer(bag.patches, bag.patches, bag.grid).tokens for _ in range(2))
    assert torch.equal(first, second)
    layer.train()
    torch.manual_seed(0)
    assert not torch.equal(layer(bag.patches, bag.patches, bag.grid).tokens, first)


def test_options_weights_and_copies_come_back() -> None:
    layer = small_layer(3, dropout=0.25, offset_scale=1.5, backend="reference")
    bag = draw_bag(4, 14, 5, 5)
    expected = layer(bag.patches, bag.patches, bag.grid).tokens
    rebuilt: DeformableCrossAttention = eval(f"DeformableCrossAttention({layer.extra_repr()})")
    assert rebuilt.extra_repr() == layer.extra_repr()
    rebuilt.double().eval().load_state_dict(layer.state_dict())
    for other in (rebuilt, copy.deepcopy(layer)):
        assert torch.equal(other(bag.patches, bag.patches, bag.grid).tokens, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"dim_head": 2.0}, TypeError, "dim_head must be an integer, got float"),
        ({"groups": 3}, ValueError, "dim must be a multiple of groups = 3, got 8"),
        ({"heads": 2, "groups": 4}, ValueError, "heads must be a multiple of groups = 4, got 2"),
        ({"downsample": 0}, ValueError, "downsample must be at least 1, got 0"),
        ({"kernel_size": 1}, ValueError, "kernel_size must be at least 2, got 1"),
        (
            {"kernel_size": 5},
            ValueError,
            "kernel_size must differ from downsample = 2 by an even number, got 5",
        ),
        ({"offset_scale": -1}, ValueError, "offset_scale must lie in [0, inf], got -1"),
        ({"dropout": 2}, ValueError, "dropout must lie in [0, 1], got 2"),
        ({"positions": "square"}, TypeError, "positions must be a convention of positions (Positions), got str"),
        (
            {"positions": ReleasedPositions(), "bias": "table"},
            ValueError,
            "bias must be 'exact' for ReleasedPositions(), which may sample outside of the map, got 'table'",
        ),
        (
            {"backend": "cuda"},
            ValueError,
            "backend must be one of 'auto', 'reference', 'streaming', 'triton', got 'cuda'",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        small_layer(**options)


def tokens_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda layer: layer(tokens_of(1, 4, 7), tokens_of(1, 4, 8)),
            ValueError,
            "query must have shape [B, N, C] = [B, N, 8], got [1, 4, 7]",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(2, 4, 8)),
            ValueError,
            "context must have shape [B, M, C] = [1, M, 8], got [2, 4, 8]",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8, dtype=torch.int64), tokens_of(1, 4, 8)),
            TypeError,
            "query must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8, dtype=torch.int64)),
            TypeError,
            "context must be a floating-point tensor, got torch.int64",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 5, 8)),
            ValueError,
            "context must have as many tokens as query, 4, or a context_grid of its own, got 5",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8), Grid.square(5)),
            ValueError,
            "query_grid.mask must have shape [B, N] = [1, 4], got [1, 5]",
        ),
        (
            lambda layer: layer(tokens_of(3, 4, 8), tokens_of(3, 4, 8), Grid.square([4, 4])),
            ValueError,
            "grid must have B = 3 bags (or one for all), got 2",
        ),
        (
            lambda layer: layer(
                tokens_of(1, 4, 8), tokens_of(1, 4, 8), Grid.square(4), mask=torch.ones(1, 4, dtype=torch.bool)
            ),
            ValueError,
            "query_grid already holds a mask: give either query_grid or mask, not both",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8), mask=torch.ones(1, 4)),
            TypeError,
            "mask must be a bool tensor (True = real token), got torch.float32",
        ),
        (
            lambda layer: layer(tokens_of(1, 4, 8), tokens_of(1, 4, 8)).attention.common_grid(0),
            ValueError,
            "resolution must be at least 1, got 0",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    call: Callable[[DeformableCrossAttention], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call(small_layer())


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
