"""A network that is read from a table where it is linear: the values and gradients of the network, exactly."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil import ContinuousPositionBias
from disentangled_mil._torch_private import grid_sample_backward
from disentangled_mil.ops import MLPBias, biased_attention
from disentangled_mil.ops.position_bias import BiasWanted, _network
from disentangled_mil.ops.position_bias._network import TiledNetwork
from disentangled_mil.ops.position_bias._piecewise import TiledPiecewise, cells_for
from tests.support.attention import draw, leaves, slopes, tiles

exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
everything = BiasWanted(bias=True, queries=True, keys=True)
seeds = st.integers(0, 10**6)


def network(seed: int, features: int = 5, outputs: int = 1) -> MLPBias:
    source = torch.Generator().manual_seed(seed)
    shapes = [(features, 2), (features,), (features, features), (features,), (outputs, features), (outputs,)]
    return MLPBias(*(torch.randn(*shape, dtype=torch.float64, generator=source).requires_grad_() for shape in shapes))


def detached(bias: MLPBias) -> MLPBias:
    return MLPBias(*(part.detach() for part in bias))


def places(seed: int, groups: int, queries: int, keys: int, reach: float = 1.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    query = reach * (2 * torch.rand(queries, 2, dtype=torch.float64, generator=source) - 1)
    key = reach * (2 * torch.rand(groups, keys, 2, dtype=torch.float64, generator=source) - 1)
    return query.requires_grad_(), key.requires_grad_()


def assert_is_the_network(bias: MLPBias, query: Tensor, key: Tensor, cells: int) -> TiledPiecewise:
    """Values and all gradients, in two tiles of queries."""
    expected = bias(query[:, None] - key[:, None]).movedim(-1, 1)  # [G, I, t, J]
    change = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.autograd.grad(expected, [query, key, *bias], change)
    piecewise = TiledPiecewise(detached(bias), cells)
    halves = (slice(0, len(query) // 2), slice(len(query) // 2, len(query)))
    made = [piecewise.tile(query.detach()[half], key.detach()) for half in halves]
    torch.testing.assert_close(torch.cat([tile.values() for tile in made], 2), expected.detach(), **exact)
    moved = [tile.backward(change[:, :, half], everything) for tile, half in zip(made, halves, strict=True)]
    into_query, into_key = torch.cat([part for part, _ in moved]), sum(part for _, part in moved)
    torch.testing.assert_close([into_query, into_key, *piecewise.gradient()], list(wanted), **exact)
    return piecewise


@given(
    seed=seeds,
    features=st.sampled_from([1, 5, 8, 33]),
    outputs=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 9)),
    cells=st.sampled_from([3, 4, 17, 60]),
    reach=st.sampled_from([0.1, 1.0, 1.5, 1e4]),
)
@settings(max_examples=80)
def test_values_and_gradients_are_the_networks_inside_and_outside_of_the_table(
    seed: int, features: int, outputs: int, sizes: tuple[int, int, int], cells: int, reach: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_network, "MOST_PAIRS", 100)  # several stripes of nodes
        assert_is_the_network(network(seed, features, outputs), *places(seed, *sizes, reach), cells)


@pytest.mark.parametrize("zero", [("w1",), ("w1", "b1"), ("w2", "b2"), ("w3",), MLPBias._fields], ids=str)
def test_weights_of_zero_are_fine(zero: tuple[str, ...]) -> None:
    bias = network(1)
    with torch.no_grad():
        for name in zero:
            getattr(bias, name).zero_()
    assert_is_the_network(bias, *places(2, 2, 9, 7), 20)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_kink_may_pass_through_nodes_and_pairs_may_lie_on_it(layer: int) -> None:
    bias = network(3, features=2)
    with torch.no_grad():
        for part in bias:
            part.fill_(1)
        bias.w1.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        bias.b1.fill_(0.0 if layer == 1 else 2.0)
        bias.w2.copy_(torch.tensor([[1.0, 0.5], [0.5, -1.0]]))
        bias.b2.fill_(1.0 if layer == 1 else 0.0)
        if layer == 2:
            bias.b2.copy_(torch.tensor([-3.0, 1.0]))  # zero where both coordinates are
    query, key = places(4, 2, 9, 7)
    with torch.no_grad():
        key[0, :4] = query[:4]  # displacements of zero, which a table of an even number of cells has as a node
        key[0, 0, 0] += 0.25
    nodes = TiledPiecewise(detached(bias), 20).nodes
    assert nodes.abs().min() < 1e-12
    assert_is_the_network(bias, query, key, 20)


@pytest.mark.parametrize("cells", [28, 29, 30, 31])
def test_pairs_on_nodes_of_the_table_have_the_slopes_of_the_network(cells: int) -> None:
    for seed in range(4):
        bias = network(seed, features=4)
        nodes = TiledPiecewise(detached(bias), cells).nodes[1:-1:3]
        distance = torch.cat([nodes.abs().expm1().copysign(nodes), torch.tensor([-2.0, 0.0, 2.0, 0.3])])
        query = torch.cartesian_prod(distance, distance).requires_grad_()
        assert_is_the_network(bias, query, torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True), cells)


def test_displacements_that_are_no_finite_numbers_go_to_the_network() -> None:
    bias, odd = detached(network(2, outputs=2)), torch.tensor([math.inf, -math.inf, math.nan, 0.5])
    query = torch.cartesian_prod(odd, odd).double()
    key = torch.tensor([[[0.0, 0.1], [math.inf, 0.2]]], dtype=torch.float64)
    change = torch.randn(1, 2, len(query), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for tiled in (TiledPiecewise(bias, 20), TiledNetwork(bias)):
        tile = tiled.tile(query, key)
        results.append([tile.values(), *tile.backward(change, everything)])
    torch.testing.assert_close(*results, equal_nan=True, **exact)


def test_a_unit_without_weights_makes_no_cell_kinked() -> None:
    dead = detached(network(0, features=6))
    dead.w1[0], dead.b1[0], dead.w2[:, 0] = 0, 0, 0
    dead.w2[1], dead.b2[1] = 0, 0
    off = dead._replace(b1=dead.b1.clone(), b2=dead.b2.clone())
    off.b1[0], off.b2[1] = -1, -1
    kinked, expected = (TiledPiecewise(bias, 60).kinked for bias in (dead, off))
    assert torch.equal(kinked, expected)
    assert not kinked.all()


@pytest.mark.parametrize("cells", [28, 29, 30, 359])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cell_of_a_pair_is_the_one_that_grid_sample_reads(cells: int, dtype: torch.dtype) -> None:
    bias = TiledPiecewise(MLPBias(*(part.to(dtype) for part in detached(network(0)))), cells)
    bias.kinked[:] = torch.arange(cells) % 2 == 1
    node = torch.arange(cells + 1, dtype=dtype)
    x = torch.cat([2 * node / cells - 1, torch.linspace(-1, 1, 1000, dtype=dtype)])
    x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1)])
    x = x[x.abs() < 1 - 1e-6]
    place = torch.stack([x, torch.zeros_like(x)], dim=-1)
    table = node.square().expand(1, 1, cells + 1, -1)  # its slope in cell c is 2 c + 1
    ones = torch.ones(1, 1, 1, len(x), dtype=dtype)
    _, slope = grid_sample_backward(ones, table, place[None, None], wanted=(False, True))
    read = ((slope[0, 0, :, 0] * 2 / cells - 1) / 2).round()
    assert torch.equal(bias.kinked_pairs(place), (read % 2 == 1).nonzero().squeeze(1))


def test_kinks_along_the_lines_of_the_table_are_not_missed() -> None:
    nodes = TiledPiecewise(detached(network(0)), 20).nodes
    bias = network(5, features=4)
    with torch.no_grad():
        bias.w1.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]))
        bias.b1.copy_(torch.stack([-nodes[7], -nodes[12], nodes[3], -2 * nodes[9]]))
    piecewise = assert_is_the_network(bias, *places(6, 2, 40, 30), 20)
    assert piecewise.kinked[:, [6, 7]].all()


def test_the_table_covers_all_displacements_between_places_of_a_bag() -> None:
    bias = detached(network(0))
    with torch.no_grad():
        bias.b1.fill_(100)  # no unit changes its sign
        bias.b2.fill_(1e4)
    # Not the last bit, which decides whether a corner is in the table.
    corners = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, 1.0)], dtype=torch.float64) * (1 - 1e-9)
    tile = TiledPiecewise(bias, 50).tile(corners, corners[None])
    assert len(tile.pairs) == 0
    tile = TiledPiecewise(bias, 50).tile(1.5 * corners, corners[None])
    assert len(tile.pairs) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_most_pairs_are_read_from_the_table(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bias = detached(ContinuousPositionBias(32, 1).to(dtype).weights())
    query, key = (part.detach().to(dtype) for part in places(0, 2, 100, 100))
    fine, coarse = (len(TiledPiecewise(bias, cells).tile(query, key).pairs) for cells in (400, 100))
    assert fine < 0.25 * 2 * 100 * 100
    assert fine < 0.5 * coarse


def test_slopes_are_good_in_float32() -> None:
    torch.manual_seed(0)
    bias = detached(ContinuousPositionBias(32, 1).weights())
    query, key = (part.detach().float() for part in places(1, 1, 100, 100))
    wide = (query[:, None] - key[:, None]).double().requires_grad_()
    expected = torch.autograd.grad(MLPBias(*(part.double() for part in bias))(wide).sum(), wide)[0].sum((0, 2))
    tile = TiledPiecewise(bias, 1024).tile(query, key)
    found, _ = tile.backward(torch.ones(1, 1, 100, 100), everything)
    assert found is not None
    assert (found - expected).abs().median() < 1e-3 * expected.abs().mean()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_seen(value: float) -> None:
    given_ = draw(5, kind="network", queries=20, keys=9)
    with torch.no_grad():
        given_["bias"].w2[0, 0] = value
    expected = biased_attention(**given_, backend="reference").out.isnan()
    with tiles(1000, piecewise=True):
        found = biased_attention(**given_, backend="streaming").out.isnan()
    assert expected.any()
    assert found[expected].all()


def test_infinite_places_of_query_and_key_end_no_process() -> None:
    given_ = draw(5, kind="network", queries=20, keys=9)
    with torch.no_grad():
        given_["query_position"][0, 3, 0] = given_["key_position"][0, 0, 1, 0] = math.inf
    with tiles(1000, piecewise=True):
        out = biased_attention(**given_, backend="streaming").out
        slopes([out], leaves(given_))
    assert out[0, :2, 3].isnan().all()
    assert out[1].isfinite().all()


def test_another_default_device_is_not_taken() -> None:
    bias, (query, key) = detached(network(0)), places(0, 2, 5, 4)
    with torch.device("meta"):
        piecewise = TiledPiecewise(bias, 10)
        found = piecewise.tile(query.detach(), key.detach()).values()
    torch.testing.assert_close(found, bias(query[:, None] - key[:, None]).detach().movedim(-1, 1), **exact)


def test_the_table_grows_with_the_work_and_is_left_out_where_it_saves_little() -> None:
    assert cells_for(10**5, 32) is None
    assert cells_for(2_500 * 144 * 8, 32) == 359
    assert cells_for(10**10, 32) == 1024
    assert cells_for(10**8, 128) == 1024
    assert cells_for(10**12, 512) is None  # kinks cross nearly all of the 1024 x 1024 cells


@pytest.mark.parametrize("piecewise", [True, False])
def test_attention_takes_the_table_where_there_are_enough_pairs(piecewise: bool) -> None:
    made = []

    class Recorded(TiledPiecewise):
        def __init__(self, bias: MLPBias, cells: int) -> None:
            made.append(cells)
            super().__init__(bias, cells)

    given_ = draw(5, kind="network", queries=90, keys=40, padded=0.2, dropped=0.1)
    results = []
    with tiles(10**4, piecewise=piecewise), pytest.MonkeyPatch.context() as patch:
        patch.setattr("disentangled_mil.ops.position_bias._choice.TiledPiecewise", Recorded)
        for backend in ("streaming", "reference"):
            attended = biased_attention(**given_, backend=backend)[:2]
            results.append([*attended, *slopes(attended, leaves(given_))])
    torch.testing.assert_close(*results, **exact)
    assert bool(made) == piecewise
