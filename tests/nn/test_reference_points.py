"""The cap on sampled keys: nothing changes below it; above it points thin out evenly, over tissue only."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag, Grid, collate_bags
from disentangled_mil.models import Student, Teacher
from disentangled_mil.nn import DMSF, DeformableCrossAttention
from disentangled_mil.nn.reference_points import even_points
from tests.support.deformable import bag_shapes, draw_bag, exact, few, seeds, small_layer

caps = st.integers(1, 12)


def rectangle(width: int, height: int) -> Grid:
    index = torch.arange(width * height)
    return Grid.from_coords(torch.stack([index % width, index // width], dim=-1), step=1)


def disk(tokens: int, share: float) -> Grid:
    """A disk of tissue of about ``tokens`` cells that fills a share of its square."""
    side = round((tokens / share) ** 0.5)
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    inside = (cells - (side - 1) / 2).norm(dim=1) <= (tokens / torch.pi) ** 0.5
    corners = torch.tensor([[0, 0], [side - 1, side - 1]])
    return Grid.from_coords(torch.cat([cells[inside], corners]).unique(dim=0), step=1)


def default_cap() -> int:
    cap = DeformableCrossAttention(8, heads=1, groups=1).max_keys
    assert cap is not None
    return cap


@pytest.mark.parametrize(
    "grid",
    [
        Grid.square(2500), Grid.square(16000), rectangle(64, 250), rectangle(6, 2666), rectangle(5, 790),
        disk(15900, 0.34), disk(15900, 0.25), disk(6000, 0.1), disk(2500, 0.04),
    ],
    ids=["2,500", "16,000", "rectangle", "six wide", "strip", "a third", "a quarter", "a tenth", "a twenty-fifth"],
)  # fmt: skip
def test_the_default_leaves_bags_of_16_000_tokens_exactly_as_they_are(grid: Grid) -> None:
    assert grid.sizes.prod() <= 64_000
    capped, uncapped = (even_points(grid, 4, 6, cap) for cap in (default_cap(), None))
    for found, expected in zip(capped, uncapped, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "grid",
    [disk(15900, 0.2), disk(8000, 0.1), disk(3000, 0.04), rectangle(5, 1000)],
    ids=["a fifth", "a tenth", "a twenty-fifth", "strip"],
)
def test_the_default_thins_smaller_bags_in_rectangles_of_over_64_000_cells_or_narrower_than_six(grid: Grid) -> None:
    assert grid.sizes.prod() > 64_000 or grid.sizes.min() < 6
    capped, uncapped = (even_points(grid, 4, 6, cap) for cap in (default_cap(), None))
    assert capped.mask.sum() < min(default_cap() + 1, int(uncapped.mask.sum()))


@given(shape=bag_shapes, seed=seeds)
@few
def test_results_and_gradients_below_the_cap_are_those_without_one(shape: tuple[int, int, int], seed: int) -> None:
    bag, results = draw_bag(seed, *shape), []
    points = int(small_layer(seed)(bag.patches, bag.patches, bag.grid).attention.shape[3])
    for cap in (points, None):
        layer = small_layer(seed, max_keys=cap)
        out = layer(bag.patches, bag.patches, bag.grid)
        out.tokens.square().sum().backward()
        results.append([out.tokens, out.attention.mass(), *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@given(shape=bag_shapes, cap=caps, seed=seeds)
@few
def test_keys_number_at_most_the_cap_wherever_a_bag_is_thinned(
    shape: tuple[int, int, int], cap: int, seed: int
) -> None:
    bag = draw_bag(seed, *shape)
    whole, points = (even_points(bag.grid, 2, 4, most) for most in (None, cap))
    count, tissue = int(whole.mask.sum()), int((bag.grid.count > 0).sum())
    area = bag.grid.width * bag.grid.height
    if count * tissue <= cap * area and count <= 4 * cap:
        assert torch.equal(points.size, whole.size)
        assert points.mask.sum() == count
    else:
        assert 1 <= points.mask.sum() <= cap
    assert points.mask.shape[1] <= max(cap, min(count, 4 * cap))
    layer = small_layer(seed, max_keys=cap)
    attention = layer(bag.patches, bag.patches, bag.grid).attention
    seen = (attention.scores.key_logit > -torch.inf).sum(-1)
    assert (seen <= points.mask.sum()).all()


def test_a_bag_that_is_not_thinned_has_at_most_four_times_as_many_points_as_the_cap() -> None:
    corner = torch.cartesian_prod(torch.arange(0, 80, 4), torch.arange(0, 80, 4))  # one cell of every 4 x 4
    grid = Grid.from_coords(torch.cat([corner, torch.tensor([[79, 79]])]), step=1)
    assert even_points(grid, 4, 6, 128).mask.sum() == 400  # all of them over tissue
    assert even_points(grid, 4, 6, 99).mask.sum() <= 99


def test_every_axis_has_a_point_and_smaller_kernels_are_refused() -> None:
    for side in range(1, 9):
        assert even_points(rectangle(side, 9), 4, 4, None).size.min() >= 1
    with pytest.raises(ValueError, match="kernel_size must be at least 4, got 3"):
        even_points(rectangle(3, 9), 4, 3, None)


@pytest.mark.parametrize("tokens", [20_000, 33_333, 70_000])
@pytest.mark.parametrize("share", [1.0, 0.34, 0.05], ids=["full", "a third", "a twentieth"])
def test_a_large_bag_uses_most_of_its_keys_and_spreads_them_evenly(tokens: int, share: float) -> None:
    grid = Grid.square(tokens) if share == 1 else disk(tokens, share)
    cap = default_cap()
    points = even_points(grid, 4, 6, cap)
    assert 0.9 * cap < points.mask.sum() <= cap
    pitch = grid.sizes / points.size  # [1, 2]
    assert (pitch >= 4).all()
    assert pitch.max() < 1.1 * pitch.min()
    # Every token has a point within the diagonal of a block of cells.
    place = ((points.position + 0.5) * pitch[:, None] - 0.5)[points.mask]
    tissue = grid.cells[0][:: max(1, tokens // 2000)].float()
    assert torch.cdist(tissue, place).amin(1).max() <= pitch.norm() / 2 + 1e-3


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 200), (200, 7)])
def test_thin_strips_are_thinned_along_their_length(size: tuple[int, int]) -> None:
    points = even_points(rectangle(*size), 2, 4, 20)
    assert 10 <= points.mask.sum() <= 20


def test_windows_of_the_offset_network_stay_around_their_points() -> None:
    grid = rectangle(30, 30)
    points = even_points(grid, 2, 4, 16)  # 4 x 4 points, 7.5 cells apart
    assert points.size.tolist() == [[4, 4]]
    assert points.window.shape == (1, 16, 4, 4)
    first = points.window[0, 0]
    assert (first // 30).unique().tolist() == (first % 30).unique().tolist() == [2, 3, 4, 5]


@given(shapes=st.lists(bag_shapes, min_size=2, max_size=3), cap=caps, seed=seeds)
@few
def test_a_thinned_bag_alone_equals_itself_in_a_batch(shapes: list[tuple[int, int, int]], cap: int, seed: int) -> None:
    layer = small_layer(seed, max_keys=cap)
    bags = [draw_bag(seed + i, *shape) for i, shape in enumerate(shapes)]
    batch = collate_bags(bags)
    together = layer(batch.patches.masked_fill(~batch.mask[..., None], torch.nan), batch.patches, batch.grid)
    for i, bag in enumerate(bags):
        alone = layer(bag.patches, bag.patches, bag.grid)
        count = bag.patches.shape[1]
        torch.testing.assert_close(together.tokens[i, :count], alone.tokens[0], **exact)
        torch.testing.assert_close(together.attention.mass()[i, :count], alone.attention.mass()[0], **exact)
        torch.testing.assert_close(together.attention.common_grid(3)[i], alone.attention.common_grid(3)[0], **exact)


@given(shape=bag_shapes, cap=caps, seed=seeds)
@few
def test_permuting_tokens_of_a_thinned_bag_permutes_the_output(
    shape: tuple[int, int, int], cap: int, seed: int
) -> None:
    layer, bag = small_layer(seed, max_keys=cap), draw_bag(seed, *shape)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    shuffled = Grid(bag.grid.cells[:, order], bag.grid.mask, bag.grid.shapes)
    out = layer(bag.patches, bag.patches, bag.grid)
    other = layer(bag.patches[:, order], bag.patches[:, order], shuffled)
    torch.testing.assert_close(other.tokens, out.tokens[:, order], **exact)


@pytest.mark.parametrize("cap", [1, 3, 6])
def test_gradients_of_a_thinned_bag_are_those_of_finite_differences(cap: int) -> None:
    layer, bag = small_layer(max_keys=cap, offset_scale=0.7), draw_bag(3, 12, 6, 5)
    query, context = (bag.patches.roll(i, dims=1).clone().requires_grad_() for i in (0, 1))

    def call(query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(query, context, bag.grid)
        return out.tokens, out.attention.mass()

    assert torch.autograd.gradcheck(call, (query, context), fast_mode=True)


def test_an_empty_bag_beside_a_thinned_one_gives_finite_results() -> None:
    layer = small_layer(max_keys=2)
    mask = torch.tensor([[True] * 40, [False] * 40])
    bag = Bag(torch.randn(2, 40, 8, dtype=torch.float64), Grid.from_mask(mask))
    out = layer(bag.patches, bag.patches, bag.grid)
    assert out.tokens.isfinite().all()
    assert (out.attention.mass()[1] == 0).all()


@pytest.mark.parametrize("options", [{}, {"max_keys": 7, "bias": "exact"}])
def test_cap_and_kind_of_the_bias_are_options_of_every_model(options: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"heads": 2, "dim_head": 4, "groups": 2} | options
    models = [
        DMSF(8, ("tumor",), selection_heads=2, **sizes),
        Teacher(5, {"tumor": 3}, 2, dim=8, selection_heads=2, **sizes),
        Student(5, 2, dim=8, **sizes),
    ]
    layers = [m for model in models for m in model.modules() if isinstance(m, DeformableCrossAttention)]
    assert len(layers) == 5
    assert {m.max_keys for m in layers} == {options.get("max_keys", 1000)}
    assert {m.bias for m in layers} == {options.get("bias", "table")}
