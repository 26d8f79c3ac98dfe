"""A network that is read from a table where it is linear: the same values and gradients as everywhere evaluated."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil import ContinuousPositionBias
from disentangled_mil.ops import AttentionScores, MLPBias, biased_attention
from disentangled_mil.ops.attention import _tiles as _attention_tiles
from disentangled_mil.ops.attention._tiles import queries_at_once
from disentangled_mil.ops.position_bias import _bias_tiles
from disentangled_mil.ops.position_bias._bias_tiles import (
    NetworkBias,
    NetworkRows,
    PiecewiseBias,
    PiecewiseTile,
    SplitRows,
    TableBias,
    TiledBias,
    tiled_bias,
)

Draw = Callable[..., dict[str, Any]]
Leaves = Callable[[dict[str, Any]], list[Tensor]]
Slopes = Callable[..., list[Tensor]]

exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def network(seed: int, features: int, outputs: int) -> MLPBias:
    source = torch.Generator().manual_seed(seed)
    shapes = [(features, 2), (features,), (features, features), (features,), (outputs, features), (outputs,)]
    parts = (torch.randn(*shape, dtype=torch.float64, generator=source) for shape in shapes)
    return MLPBias(*(part.requires_grad_() for part in parts))


def pieces(bias: Sequence[Tensor], extent: tuple[float, float], nodes: int) -> PiecewiseBias:
    return PiecewiseBias([part.detach() for part in bias], extent, nodes, 10**6)


def between(queries: Tensor, keys: Tensor) -> Tensor:
    """Displacements [G, t, J, 2]."""
    return queries[:, None] - keys[:, None]


def whole(bias: PiecewiseBias, queries: Tensor, keys: Tensor) -> PiecewiseTile:
    """All queries in one tile."""
    return bias.between(queries, keys, len(queries))(slice(None))


def prepared(arguments: dict[str, Any]) -> TiledBias | None:
    scores = AttentionScores(**{name: value for name, value in arguments.items() if name != "value"})
    return tiled_bias(scores.tensors(), 1.0)


@given(
    seed=st.integers(0, 10**6),
    features=st.sampled_from([1, 5, 16, 17, 33]),
    outputs=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3, 6]),
    queries=st.integers(2, 9),
    keys=st.integers(1, 9),
    lattice=st.booleans(),
    held=st.sampled_from([0, 9]),
    extent=st.tuples(st.sampled_from([0.0, 0.3, 2.0, 1e4]), st.sampled_from([0.0, 0.3, 2.0])),
    nodes=st.sampled_from([1, 100, 5000]),
    at_once=st.sampled_from([3, 1 << 13]),
    threads=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=80)
def test_values_and_gradients_are_the_networks_inside_and_outside_of_the_table(
    seed: int,
    features: int,
    outputs: int,
    groups: int,
    queries: int,
    keys: int,
    lattice: bool,
    held: int,
    extent: tuple[float, float],
    nodes: int,
    at_once: int,
    threads: int,
) -> None:
    bias = network(seed, features, outputs)
    source = torch.Generator().manual_seed(seed)
    query = torch.randn(queries, 2, dtype=torch.float64, generator=source)
    key = 2 * torch.randn(groups, keys, 2, dtype=torch.float64, generator=source)
    if lattice:
        query = query.round()
    change = torch.randn(groups, outputs, queries, keys, dtype=torch.float64, generator=source)
    displacement = between(query, key).requires_grad_()
    expected = bias(displacement).movedim(-1, 1)
    slopes = torch.autograd.grad(expected, [displacement, *bias], change)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bias_tiles, "NETWORK_TILE", at_once)
        patch.setattr(_bias_tiles, "_LEAST_PITCH", 0.0)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        bias_tiles = pieces(bias, extent, nodes)
        tile_of = bias_tiles.between(query, key, held)
        tiles = [tile_of(some) for some in (slice(0, queries // 2), slice(queries // 2, queries))]
        torch.testing.assert_close(torch.cat([tile.values() for tile in tiles], 2), expected.detach(), **exact)
        parts = change.split([queries // 2, queries - queries // 2], 2)
        moved = torch.cat(
            [
                tile.backward(part.contiguous(), want_bias=True, want_position=True)
                for tile, part in zip(tiles, parts, strict=True)
            ],
            1,
        )
        into = [torch.zeros_like(part) for part in bias]
        bias_tiles.finish(into)
    torch.testing.assert_close([moved, *into], list(slopes), **exact)


@pytest.mark.parametrize("extent", [(2.0, 2.0), (2.0, 0.0), (0.01, 0.01), (0.0, 0.0)])
def test_slopes_are_good_in_float32_however_near_the_positions_are(extent: tuple[float, float]) -> None:
    torch.manual_seed(0)
    bias = [part.detach() for part in ContinuousPositionBias(32, 1).weights()]
    query, key = (torch.rand(*shape, 2) * torch.tensor(extent) for shape in ((100,), (1, 100)))
    wide = between(query, key).double().requires_grad_()
    (expected,) = torch.autograd.grad(MLPBias(*(part.double() for part in bias))(wide).sum(), wide)
    moved = whole(pieces(bias, extent, 10**6), query, key).backward(torch.ones(1, 1, 100, 100), True, True)
    assert moved is not None
    # The median, because a pair at a kink may be on its other side in float32.
    assert (moved - expected).abs().median() < 2e-4 * expected.abs().mean()


def test_bags_that_lie_far_from_each_other_have_the_table_of_one(draw: Draw) -> None:
    given_ = draw(7, kind="network", queries=90, keys=40)
    near = prepared(given_)
    with torch.no_grad():
        for name in ("query_position", "key_position"):
            given_[name][1] += 1e5
    far = prepared(given_)
    assert isinstance(near, PiecewiseBias)
    assert isinstance(far, PiecewiseBias)
    torch.testing.assert_close(far.sides, near.sides)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_most_pairs_are_not_given_to_the_network(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bias = ContinuousPositionBias(32, 1).to(dtype).weights()
    fine, coarse = (pieces(bias, (2.0, 2.0), nodes) for nodes in (200_000, 20_000))
    tile = whole(fine, *(2 * torch.rand(*shape, 2, dtype=dtype) for shape in ((100,), (2, 100))))
    network, folded = (len(pairs) for pairs, *_ in tile.exceptions)
    assert network < 0.06 * 2 * 100 * 100
    assert folded < 0.2 * 2 * 100 * 100
    assert coarse.pairs_at_once < 0.5 * fine.pairs_at_once  # several times as many pairs for the network


@pytest.mark.parametrize(
    ("batch", "least", "per_query", "most"), [(2, 10, 3, 3 * 90), (1, 1000, 3, 1000), (3, 1000, 3, 2000)]
)
def test_tiles_grow_with_the_queries_and_with_several_bags(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, batch: int, least: int, per_query: int, most: int
) -> None:
    monkeypatch.setattr(_bias_tiles, "PIECES_TILE", least)
    monkeypatch.setattr(_bias_tiles, "PIECES_TILE_PER_QUERY", per_query)
    bias = prepared(draw(5, kind="network", batch=batch, queries=90, keys=120))
    assert isinstance(bias, PiecewiseBias)
    assert bias.pairs_at_once == most


def test_another_default_device_is_not_taken() -> None:
    bias = network(0, 5, 1)
    query, key = torch.rand(4, 2, dtype=torch.float64).round(), torch.rand(1, 5, 2, dtype=torch.float64)
    displacement = between(query, key).requires_grad_()
    expected = bias(displacement).movedim(-1, 1)
    slopes = torch.autograd.grad(expected.sum(), [displacement, *bias])
    with torch.device("meta"):
        pieces_ = pieces(bias, (2.0, 2.0), 400)
        tile = whole(pieces_, query, key)
        values = tile.values()
        moved = tile.backward(values.new_ones(values.shape), want_bias=True, want_position=True)
        into = [part.new_zeros(part.shape) for part in bias]
        pieces_.finish(into)
    torch.testing.assert_close(values, expected.detach(), **exact)
    torch.testing.assert_close([moved, *into], list(slopes), **exact)


@pytest.mark.parametrize("queries", [90, 20], ids=["pieces", "network"])
def test_attention_takes_the_table_where_there_are_enough_pairs(
    draw: Draw, leaves: Leaves, slopes: Slopes, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    made = []
    build = PiecewiseBias.__init__

    def record(self: PiecewiseBias, *arguments: Any) -> None:
        made.append(self)
        build(self, *arguments)

    monkeypatch.setattr(PiecewiseBias, "__init__", record)
    given_ = draw(5, kind="network", queries=queries, keys=40, padded=0.2, dropped=0.1)
    results = []
    for backend in ("streaming", "reference"):
        attended = biased_attention(**given_, backend=backend)[:2]
        results.append([*attended, *slopes(attended, leaves(given_))])
    torch.testing.assert_close(*results, **exact)
    assert bool(made) == (queries == 90)


@pytest.mark.parametrize("outputs", [1, 2])
def test_no_pair_may_be_at_a_kink(outputs: int) -> None:
    bias = network(0, 5, outputs)
    with torch.no_grad():
        bias.b1.fill_(100)
        bias.b2.fill_(1e4)
    query, key = torch.rand(4, 2, dtype=torch.float64), torch.rand(3, 5, 2, dtype=torch.float64)
    displacement = between(query, key).requires_grad_()
    expected = bias(displacement).movedim(-1, 1)
    change = torch.ones(expected.shape, dtype=torch.float64)
    (slope,) = torch.autograd.grad(expected, displacement, change)
    tile = whole(pieces(bias, (2.0, 2.0), 400), query, key)
    assert not any(len(pairs) for pairs, *_ in tile.exceptions)
    torch.testing.assert_close(tile.values(), expected.detach(), **exact)
    torch.testing.assert_close(tile.backward(change, want_bias=True, want_position=True), slope, **exact)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_seen(draw: Draw, value: float) -> None:
    given_ = draw(5, kind="network", queries=90, keys=40)
    with torch.no_grad():
        given_["bias"].w2[0, 0] = value
    found, expected = (biased_attention(**given_, backend=backend) for backend in ("streaming", "reference"))
    assert expected.out.isnan().any()
    assert found.out.isnan()[expected.out.isnan()].all()


def test_queries_and_keys_at_one_place_are_fine(draw: Draw, leaves: Leaves, slopes: Slopes) -> None:
    given_ = draw(6, kind="network", queries=90, keys=40)
    with torch.no_grad():
        given_["query_position"].fill_(0.25)
        given_["key_position"].fill_(0.25)
    found, expected = (
        slopes([biased_attention(**given_, backend=backend).out], leaves(given_))
        for backend in ("streaming", "reference")
    )
    torch.testing.assert_close(found, expected, **exact)


@pytest.mark.parametrize(("device", "larger"), [("cpu", 1), ("meta", _bias_tiles.DEVICE_TILES)])
def test_tiles_are_larger_elsewhere_than_on_a_cpu(device: str, larger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_attention_tiles, "TILE", 4000)
    monkeypatch.setattr(_bias_tiles, "NETWORK_TILE", 100)
    query = torch.empty(2, 10_000, 4, device=device)
    bias = NetworkBias([part.detach().to(device) for part in network(0, 5, 1)])
    assert queries_at_once(query, groups=1, keys=20, bias=None, maps=1) == 100 * larger
    assert queries_at_once(query, groups=1, keys=20, bias=bias, maps=1) == max(8, 5 * larger)
    assert queries_at_once(query, groups=1, keys=20, bias=None, maps=2) == max(32, 50 * larger)
    spaced = torch.empty(200 * larger + 1, 2, dtype=torch.float64, device=device)
    for rows, kind in ((spaced[1:], NetworkRows), (spaced, SplitRows)):
        assert type(bias.rows(rows)) is kind


@pytest.mark.parametrize("kind", ["network", "table"])
def test_nothing_is_passed_back_to_a_bias_that_wants_no_gradient(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a gradient that nobody wants")

    monkeypatch.setattr(_bias_tiles.TableTile, "backward", refuse)
    given_ = draw(5, kind=kind, queries=90, keys=40)
    assert isinstance(prepared(given_), PiecewiseBias if kind == "network" else TableBias)
    for tensor in (*given_["bias"], given_["query_position"], given_["key_position"]):
        if isinstance(tensor, Tensor):
            tensor.requires_grad_(False)
    biased_attention(**given_, backend="streaming").out.sum().backward()
    assert given_["value"].grad is not None
