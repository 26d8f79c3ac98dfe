"""The lazy attention map: where its mass lies, what it sums to, and who sees padding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Grid, TokenSet
from disentangled_mil.models.released import ReleasedPositions
from disentangled_mil.nn.attention import DeformableAttention
from disentangled_mil.nn.deformable import DeformableCrossAttention
from disentangled_mil.ops import AttentionScores, attention_overlap
from tests.support.allocations import allocations
from tests.support.attention import tiles


def overlap(one: DeformableAttention, other: DeformableAttention, resolution: int | None = None) -> Tensor:
    """Inner products of the maps of two layers, as the consistency loss takes them."""
    if resolution is None:
        resolution = one.resolution_with(other)
    return attention_overlap(one.vectors(resolution), other.vectors(resolution))


def attention_at(positions: Tensor, share: Tensor, grid: Grid, context: Grid | None = None) -> DeformableAttention:
    """One bag whose queries all put ``share`` [H, J] on keys at ``positions`` [G, J, 2], in context cells."""
    heads = len(share)
    context = grid if context is None else context
    tokens = grid.mask.shape[1]
    scores = AttentionScores(
        query=torch.ones(1, heads, tokens, 1),
        key=share.log()[None, ..., None],
        query_position=torch.zeros(1, tokens, 2),
        key_position=((2 * positions + 1) / torch.tensor([context.width, context.height]) - 1)[None],
    )
    return DeformableAttention(
        scores,
        mass_sums=scores.weights().sum(2),
        kept=None,
        coarse_positions=positions[None],
        sampling_positions=positions[None],
        query_grid=grid,
        context_grid=context,
    )


def holey_batch(generator: torch.Generator, bags: int, tokens: int, side: int) -> tuple[Tensor, Grid]:
    """Tokens on random cells (some shared) with random padding; every bag keeps at least one token."""
    coords = torch.randint(side, (bags, tokens, 2), generator=generator)
    mask = torch.rand(bags, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return torch.randn(bags, tokens, 8, generator=generator), Grid.from_coords(coords, mask=mask, step=1)


def layer(seed: int = 0, **options: object) -> DeformableCrossAttention:
    torch.manual_seed(seed)
    return DeformableCrossAttention(8, **{"heads": 4, "dim_head": 4, "groups": 2, "downsample": 2} | options)


def test_mass_lies_on_the_cells_that_were_sampled() -> None:
    grid = Grid.square(9)  # cell (x, y) is token 3 y + x
    positions = torch.tensor([[[1.0, 0.0], [0.25, 2.0]]])
    mass = attention_at(positions, torch.tensor([[0.4, 0.6]]), grid).mass()
    expected = torch.tensor([[0, 0.4, 0, 0, 0, 0, 0.6 * 0.75, 0.6 * 0.25, 0]])
    torch.testing.assert_close(mass, expected)


def test_mass_is_split_bilinearly_between_four_cells() -> None:
    mass = attention_at(torch.tensor([[[0.25, 0.5]]]), torch.ones(1, 1), Grid.square(4)).mass()
    torch.testing.assert_close(mass, torch.tensor([[0.375, 0.125, 0.375, 0.125]]))


def test_mass_averages_heads_that_sample_elsewhere() -> None:
    positions = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]])  # two groups of two heads
    share = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.75, 0.25]])
    mass = attention_at(positions, share, Grid.square(4)).mass()
    torch.testing.assert_close(mass, torch.tensor([[0.75, 1.25, 1.25, 0.75]]) / 4)


def test_tokens_of_one_cell_share_its_mass_equally() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0], [1, 0], [1, 0], [1, 0]]), step=1)
    mass = attention_at(torch.tensor([[[0.25, 0.0]]]), torch.ones(1, 1), grid).mass()
    torch.testing.assert_close(mass, torch.tensor([[0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3]]))


def test_a_hole_leaves_its_share_to_the_tissue_beside_it() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0], [2, 0]]), step=1)  # a hole between
    positions = torch.tensor([[[0.75, 0.0], [2.0, 0.0]]])
    mass = attention_at(positions, torch.tensor([[0.3, 0.7]]), grid).mass()
    torch.testing.assert_close(mass, torch.tensor([[0.3, 0.7]]))


def test_what_a_released_layer_samples_outside_of_the_map_is_no_tokens_mass() -> None:
    positions = torch.tensor([[[-3.0, 0.0], [1.0, 1.0], [-0.5, 0.0]]])
    attention = replace(
        attention_at(positions, torch.tensor([[0.5, 0.3, 0.2]]), Grid.square(4)), positions=ReleasedPositions()
    )
    torch.testing.assert_close(attention.mass(), torch.tensor([[0.1, 0.0, 0.0, 0.3]]))


def test_mass_counts_the_context_and_not_the_queries() -> None:
    positions = torch.tensor([[[0.0, 0.0], [2.0, 1.0]]])
    context = Grid.from_coords(torch.cartesian_prod(torch.arange(2), torch.arange(3)).flip(1), step=1)
    mass = attention_at(positions, torch.tensor([[0.2, 0.8]]), Grid.square(4), context).mass()
    torch.testing.assert_close(mass, torch.tensor([[0.2, 0, 0, 0, 0, 0.8]]))


@settings(max_examples=40)
@given(bags=st.integers(1, 3), tokens=st.integers(1, 30), side=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_mass_is_a_distribution_over_real_tokens(bags: int, tokens: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    patches, grid = holey_batch(generator, bags, tokens, side)
    attention = layer(seed)(patches, patches, grid).attention
    mass = attention.mass()
    assert mass.shape == (bags, tokens)
    assert (mass >= 0).all()
    assert (mass[~grid.mask] == 0).all()
    torch.testing.assert_close(mass.sum(1), torch.ones(bags))


@settings(max_examples=40)
@given(
    bags=st.integers(1, 3),
    tokens=st.integers(1, 30),
    side=st.integers(1, 9),
    resolution=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_the_common_grid_is_a_distribution_per_head(
    bags: int, tokens: int, side: int, resolution: int, seed: int
) -> None:
    patches, grid = holey_batch(torch.Generator().manual_seed(seed), bags, tokens, side)
    attention = layer(seed)(patches, patches, grid).attention
    common = attention.common_grid(resolution)
    assert common.shape == (bags, 4, resolution**2)
    assert (common >= 0).all()
    torch.testing.assert_close(common.sum(-1), torch.ones(bags, 4))


def test_the_common_grid_holds_each_key_where_it_was_sampled() -> None:
    positions = torch.tensor([[[0.0, 0.0], [2.0, 1.0]], [[1.0, 2.0], [0.5, 0.0]]])  # heads 0, 1 and heads 2, 3
    share = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    common = attention_at(positions, share, Grid.square(9)).common_grid(3).view(4, 3, 3)
    expected = torch.zeros(4, 3, 3)
    expected[:2, 0, 0], expected[:2, 1, 2] = share[:2, 0], share[:2, 1]
    expected[2:, 2, 1] = share[2:, 0]
    expected[2:, 0, 0] = expected[2:, 0, 1] = share[2:, 1] / 2
    torch.testing.assert_close(common, expected)


def test_the_common_grid_is_the_mean_of_the_weights_of_real_queries(generator: torch.Generator) -> None:
    patches, grid = holey_batch(generator, bags=2, tokens=20, side=8)
    attention = layer()(patches, patches, grid).attention
    # One cell holds all keys: what the rows of the weights sum to.
    rows = attention.weights().sum(-1)  # [B, H, N]
    mean = rows.sum(-1) / grid.mask.sum(1)[:, None]
    torch.testing.assert_close(attention.common_grid(1)[..., 0], mean)
    keys = torch.stack([weights[:, real].mean(1) for weights, real in zip(attention.weights(), grid.mask, strict=True)])
    torch.testing.assert_close(attention.key_mass(), keys)


def test_the_common_grid_does_not_depend_on_the_resolution_of_the_bag() -> None:
    share = torch.tensor([[0.3, 0.7]])
    coarse = attention_at(torch.tensor([[[0.5, 1.5], [2.5, 0.5]]]), share, Grid.square(16))
    fine = attention_at(torch.tensor([[[1.5, 3.5], [5.5, 1.5]]]), share, Grid.square(64))
    torch.testing.assert_close(coarse.common_grid(3), fine.common_grid(3))


@pytest.mark.parametrize("resolution", [0, -2])
def test_a_resolution_that_is_not_positive_is_refused(resolution: int) -> None:
    attention = attention_at(torch.zeros(1, 1, 2), torch.ones(1, 1), Grid.square(4))
    with pytest.raises(ValueError, match=f"resolution must be at least 1, got {resolution}"):
        attention.common_grid(resolution)


def test_weights_are_rows_of_a_softmax_and_zero_for_padded_queries(generator: torch.Generator) -> None:
    tokens = torch.randn(2, 16, 8, generator=generator)
    grid = Grid.square([16, 9])
    weights = layer()(tokens, tokens, grid).attention.weights()
    torch.testing.assert_close(weights.sum(-1), grid.mask[:, None].expand(-1, 4, -1).to(weights.dtype))


def test_what_padding_holds_changes_nothing(generator: torch.Generator) -> None:
    patches, grid = holey_batch(generator, bags=2, tokens=20, side=6)
    poisoned = torch.where(grid.mask[..., None], patches, torch.nan)
    model = layer()
    clean, dirty = (model(x, x, grid).attention for x in (patches, poisoned))
    assert dirty.mass().equal(clean.mass())
    assert dirty.common_grid(3).equal(clean.common_grid(3))


def test_a_bag_alone_has_the_mass_that_it_has_in_a_batch(generator: torch.Generator) -> None:
    tokens = torch.randn(2, 49, 8, generator=generator)
    model = layer()
    together = model(tokens, tokens, Grid.square([49, 25])).attention
    alone = model(tokens[1:, :25], tokens[1:, :25], Grid.square(25)).attention
    torch.testing.assert_close(together.mass()[1:, :25], alone.mass())
    torch.testing.assert_close(together.common_grid(4)[1:], alone.common_grid(4))


def test_an_empty_bag_has_no_mass(generator: torch.Generator) -> None:
    tokens = torch.randn(2, 9, 8, generator=generator)
    mask = torch.tensor([True, False])[:, None].expand(2, 9)
    attention = layer()(tokens, tokens, Grid.from_mask(mask)).attention
    torch.testing.assert_close(attention.mass().sum(1), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(attention.common_grid(2).sum(-1), mask[:, :1].float().expand(2, 4))


FULL = Grid.square([9, 9])


@pytest.mark.parametrize(
    ("query", "context", "expected"),
    [
        (FULL, FULL, True),
        (FULL, Grid.square([16, 16]), True),
        (FULL, Grid.square([9, 8]), False),
        (FULL, Grid.square([9, 4]), False),
        (Grid.square([8, 8]), FULL, False),
        (Grid.from_mask(torch.arange(9) < torch.tensor([[9], [7]])), FULL, False),
        (
            Grid.from_coords(torch.tensor([[0, 0], [1, 0], [0, 1], [0, 1]]).expand(2, -1, -1), step=1),
            FULL,
            False,
        ),
    ],
    ids=["full", "two sizes", "padding", "other size", "hole", "padded queries", "shared cell beside a hole"],
)
def test_full_means_that_queries_and_context_fill_one_rectangle(query: Grid, context: Grid, expected: bool) -> None:
    q, c = (torch.zeros(2, grid.mask.shape[1], 8) for grid in (query, context))
    assert layer()(q, c, query, context).attention.full is expected


@pytest.mark.parametrize("what", ["weights", "mass", "common_grid"])
def test_gradients_reach_queries_keys_positions_and_bias(what: str, generator: torch.Generator) -> None:
    tokens = torch.randn(1, 36, 8, generator=generator)
    model = layer()
    attention = model(tokens, tokens, Grid.square(36)).attention
    value = attention.common_grid(3) if what == "common_grid" else getattr(attention, what)()
    value.square().sum().backward()
    for module in (model.to_q, model.to_k, model.to_offsets.pointwise, model.position_bias.mlp[0]):
        assert module.weight.grad.isfinite().all()
        assert module.weight.grad.abs().sum() > 0


def test_mass_and_common_grid_have_right_gradients(generator: torch.Generator) -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0], [1, 0], [1, 0], [0, 1], [2, 2]]), step=1)
    model = layer().double()
    tokens = torch.randn(1, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x, x, grid).attention.mass(), tokens)
    assert torch.autograd.gradcheck(lambda x: model(x, x, grid).attention.common_grid(2), tokens)


def square_maps(seed: int, side: int, **options: object) -> DeformableAttention:
    """Attention of two bags that fill a square."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, side**2, 8, dtype=torch.float64, generator=generator)
    return layer(seed, **options).double()(patches, patches, Grid.square([side**2] * 2)).attention


@pytest.mark.parametrize("bias", ["exact", "table"])
@pytest.mark.parametrize("keep_weights", [True, False])
def test_overlap_of_full_maps_is_that_of_the_dense_maps_with_gradients(bias: str, keep_weights: bool) -> None:
    gradients = []
    for dense in (False, True):
        model, tokens = layer(bias=bias, keep_weights=keep_weights).double(), torch.arange(400.0).double().sin()
        low, high = (model(x, x, FULL).attention for x in tokens.view(2, 2, 25, 4).repeat(1, 1, 1, 2)[:, :, :9])
        assert (low.kept is not None) == keep_weights
        if dense:
            found = low.weights().flatten(1) @ high.weights().flatten(1).T
        else:
            found = overlap(low, high)
        (found * torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum().backward()
        gradients.append([found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 5
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_overlap_is_the_same_where_only_one_side_kept_its_weights() -> None:
    low, high = square_maps(0, 4, keep_weights=True), square_maps(1, 4, keep_weights=True)
    expected = overlap(low, high)
    for a, b in ((replace(low, kept=None), high), (low, replace(high, kept=None))):
        torch.testing.assert_close(overlap(a, b), expected)


@pytest.mark.parametrize("sides", [(26, 26), (26, 24)], ids=["dense", "common grid"])
@pytest.mark.parametrize("bias", ["exact", "table"])
def test_attention_and_overlap_never_hold_a_map_of_one_head(bias: str, sides: tuple[int, int]) -> None:
    model = layer(bias=bias)

    def largest(backend: str) -> int:
        model.backend = backend
        low, high = (torch.zeros(2, side**2, 8).copy_(torch.arange(8.0)) for side in sides)

        def train() -> None:
            maps = [model(x, x, Grid.square([x.shape[1]] * 2)).attention for x in (low, high)]
            overlap(maps[0], maps[1]).sum().backward()

        with tiles(1 << 14):
            return allocations(train)[0]

    queries, keys = min(sides) ** 2, (min(sides) // 2) ** 2
    one_head = 4 * queries * keys
    assert largest("reference") >= 2 * 4 * one_head
    assert largest("streaming") < one_head


@pytest.mark.parametrize(("side", "resolution", "expected"), [(6, None, 16), (4, None, 16), (6, 5, 5)])
def test_maps_of_other_places_overlap_by_their_mass_on_a_common_grid(
    side: int, resolution: int | None, expected: int
) -> None:
    low, high = square_maps(0, 6), square_maps(1, side)
    if side == 6 and resolution is None:
        low = replace(low, query_grid=Grid.from_mask(low.query_grid.mask & (torch.arange(36) < 30)))
    coarse, fine = (maps.common_grid(expected).flatten(1) for maps in (low, high))
    torch.testing.assert_close(overlap(low, high, resolution), coarse @ fine.T)


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize(("side", "by_entries"), [(8, True), (10, False)], ids=["16 keys", "25 keys"])
def test_full_maps_are_compared_entry_by_entry_only_while_they_are_small(
    side: int, by_entries: bool, keep_weights: bool
) -> None:
    low, high = (square_maps(seed, side, keep_weights=keep_weights) for seed in (0, 1))  # at most 4 D = 16 keys
    assert low.resolution_with(high) == (None if by_entries else 16)
    maps = (m.weights() if by_entries else m.common_grid(16) for m in (low, high))
    first, second = (m.flatten(1) for m in maps)
    torch.testing.assert_close(overlap(low, high), first @ second.T)


def test_vectors_refuse_other_than_counts_of_cells() -> None:
    for resolution in (0, -1):
        with pytest.raises(ValueError, match=f"resolution must be at least 1, got {resolution}"):
            square_maps(0, 4).vectors(resolution)


def test_weights_are_kept_only_where_asked_for_and_with_gradients() -> None:
    assert square_maps(0, 4).kept is None
    assert square_maps(0, 4, keep_weights=True).kept is not None
    with torch.no_grad():
        assert square_maps(0, 4, keep_weights=True).kept is None
    assert square_maps(0, 10, keep_weights=True).kept is None  # 25 keys, more than 4 rows of 4 numbers


@pytest.mark.parametrize("bias", ["exact", "table"])
def test_a_map_is_still_its_own_after_the_next_step_of_training(bias: str) -> None:
    layer = DeformableCrossAttention(8, heads=2, groups=2, dim_head=4, bias=bias, dropout=0.0)
    tokens = torch.randn(1, 30, 8)
    attended = layer(tokens, tokens)
    before = attended.attention.weights().detach()
    attended.tokens.sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert torch.equal(attended.attention.weights(), before)


def test_maps_of_sets_have_masses_and_no_places() -> None:
    tokens = torch.randn(2, 9, 8)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    for most in (3, 9):
        attention = layer(max_keys=most)(tokens, tokens, mask=mask).attention
        weights, mass = attention.weights(), attention.mass()
        assert weights.shape == (2, 4, 9, most)
        torch.testing.assert_close(mass.sum(1), torch.ones(2))
        assert not mass[~mask].any()
        assert ((mass > 0).sum(1) <= most).all()
        torch.testing.assert_close(attention.key_mass()[0], weights[0].mean(1))
        for compare in (lambda: attention.common_grid(3), lambda: attention.vectors(None)):  # noqa: B023
            with pytest.raises(ValueError, match="attention must lie on grids to be compared, got bags without"):
                compare()


def test_without_a_cap_all_tokens_of_a_set_are_keys() -> None:
    tokens = torch.randn(1, 30, 8)
    torch.testing.assert_close(layer(max_keys=None)(tokens, tokens).tokens, layer()(tokens, tokens).tokens)


def test_two_sets_of_other_sizes_and_a_grid_beside_a_set() -> None:
    query, context = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    sets = TokenSet.of([5, 3]), TokenSet.of([7, 4])
    expected = layer()(query, context, *sets)
    mixed = layer()(query, context, Grid.square([5, 3]), sets[1])
    torch.testing.assert_close(mixed.tokens, expected.tokens)
    assert expected.attention.mass().shape == (2, 7)
