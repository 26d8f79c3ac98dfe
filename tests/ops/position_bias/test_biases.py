"""Position biases: the network by the layer's modules, the table at its nodes, between them, and how far off it is."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil import ContinuousPositionBias
from disentangled_mil.ops import BiasTable, MLPBias
from disentangled_mil.ops.position_bias._network import log_spaced

few = settings(max_examples=20)
seeds = st.integers(0, 10**6)
wide: dict[str, Any] = {"dtype": torch.float64}


def random_network(seed: int, hidden: int, outputs: int, size: float) -> MLPBias:
    source = torch.Generator().manual_seed(seed)
    shapes = [(hidden, 2), (hidden,), (hidden, hidden), (hidden,), (outputs, hidden), (outputs,)]
    return MLPBias(*(size * torch.randn(*shape, generator=source, **wide) for shape in shapes))


def displacements(seed: int, count: int, reach: float) -> Tensor:
    """Anywhere within the reach, with its corners and the middle."""
    inside = (2 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), **wide) - 1) * reach
    corners = torch.tensor([[x, y] for x in (-reach, 0, reach) for y in (-reach, 0, reach)], **wide)
    return torch.cat([inside, corners])


def plane(displacement: Tensor) -> Tensor:
    """Two heads: 1 + 2 x - 3 y, and x y, which bilinear reading meets exactly."""
    x, y = displacement.unbind(-1)
    return torch.stack([1 + 2 * x - 3 * y, x * y], dim=-1)


@given(
    seed=seeds,
    hidden=st.integers(1, 6),
    outputs=st.integers(1, 3),
    shape=st.lists(st.integers(0, 4), max_size=3),
)
@few
def test_the_network_is_that_of_the_layers_modules(seed: int, hidden: int, outputs: int, shape: list[int]) -> None:
    torch.manual_seed(seed)
    layer = ContinuousPositionBias(hidden, outputs).double()
    displacement = torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), **wide) * 3
    spaced = displacement.sign() * displacement.abs().log1p()
    found = layer.weights()(displacement)
    assert found.shape == (*shape, outputs)
    torch.testing.assert_close(found, layer.mlp(spaced))
    torch.testing.assert_close(found, layer(displacement))


def test_log_spacing_is_odd_and_has_its_slope_at_zero_too() -> None:
    values = torch.tensor([-3.0, -1e-12, -0.0, 0.0, 1e-12, 0.5, 3.0], requires_grad=True, **wide)
    spaced = log_spaced(values)
    torch.testing.assert_close(spaced, torch.sign(values) * (values.abs() + 0).log1p(), rtol=1e-12, atol=0)
    assert torch.equal(log_spaced(-values), -spaced)
    (slope,) = torch.autograd.grad(spaced.sum(), values)
    torch.testing.assert_close(slope, 1 / (1 + values.detach().abs()))


def test_gradients_of_the_network_are_those_of_finite_differences() -> None:
    network = random_network(0, 4, 2, 1.0)
    parts = [part.requires_grad_() for part in network]
    displacement = displacements(0, 5, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, *parts: MLPBias(*parts)(d), (displacement, *parts), fast_mode=True)


@given(
    seed=seeds,
    hidden=st.integers(1, 8),
    outputs=st.integers(1, 3),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    reach=st.sampled_from([0.01, 1.0, 50.0]),
)
@few
def test_no_network_changes_faster_than_its_lipschitz_constant(
    seed: int, hidden: int, outputs: int, size: float, reach: float
) -> None:
    network = random_network(seed, hidden, outputs, size)
    lipschitz_constant = network.lipschitz_constant()
    assert lipschitz_constant.shape == (outputs,)
    places = displacements(seed, 100, reach)
    for others in (places.roll(1, 0), places + reach * 1e-4):
        distance = torch.linalg.vector_norm(places - others, dim=-1, keepdim=True)
        assert ((network(places) - network(others)).abs() <= lipschitz_constant * distance * (1 + 1e-9) + 1e-9).all()


def test_the_lipschitz_constant_is_reached_by_a_network_without_a_bend() -> None:
    # Both layers pass everything on, so that the bias is 3 s_x + 4 s_y, whose slope at 0 is 5; and 2 of another head.
    hidden = torch.full((2,), 100.0)
    weights = torch.tensor([[3.0, 4.0], [2.0, 0.0]])
    network = MLPBias(torch.eye(2), hidden, torch.eye(2), hidden, weights, torch.zeros(2))
    torch.testing.assert_close(network.lipschitz_constant(), torch.tensor([5.0, 2.0], **wide))
    slope = torch.autograd.functional.jacobian(network, torch.zeros(2)).norm(dim=1)
    torch.testing.assert_close(slope, torch.tensor([5.0, 2.0]))


def test_the_lipschitz_constant_holds_for_low_precision_and_has_no_graph() -> None:
    network = ContinuousPositionBias(8, 2).bfloat16().weights()
    lipschitz_constant = network.lipschitz_constant()
    assert lipschitz_constant.dtype == torch.float64
    assert not lipschitz_constant.requires_grad
    torch.testing.assert_close(lipschitz_constant, MLPBias(*(part.double() for part in network)).lipschitz_constant())


@given(
    seed=seeds,
    hidden=st.integers(1, 8),
    outputs=st.integers(1, 3),
    size=st.sampled_from([0.3, 1.0, 3.0]),
    resolution=st.sampled_from([2, 3, 8, 33]),
    reach=st.sampled_from([0.5, 2.0, 20.0]),
)
@settings(max_examples=40)
def test_a_table_is_nowhere_further_from_its_network_than_its_error_bound(
    seed: int, hidden: int, outputs: int, size: float, resolution: int, reach: float
) -> None:
    network = random_network(seed, hidden, outputs, size)
    table = BiasTable.of(network, resolution=resolution, reach=reach, **wide)
    bound = table.error_bound(network.lipschitz_constant())
    places = displacements(seed, 300, reach)
    error = (table(places) - network(places)).abs().amax(0)
    assert bound.shape == error.shape == (outputs,)
    assert (error <= bound * (1 + 1e-9) + 1e-9).all()
    finer = BiasTable.of(network, resolution=2 * resolution - 1, reach=reach, **wide)
    torch.testing.assert_close(finer.error_bound(network.lipschitz_constant()), bound / 2)


def test_the_error_bound_by_hand() -> None:
    # A cone around the middle of a cell: the value there is that of the corners, half of a diagonal away.
    def cone(displacement: Tensor) -> Tensor:
        return torch.linalg.vector_norm(displacement, dim=-1, keepdim=True)

    table = BiasTable.of(cone, resolution=2, reach=1.0)
    torch.testing.assert_close(table(torch.zeros(2)), table.error_bound(torch.ones(1)))
    torch.testing.assert_close(table.error_bound(torch.tensor([1.0, 3.0])), torch.tensor([2.0, 18.0]).sqrt())


@given(resolution=st.integers(2, 40), reach=st.sampled_from([0.3, 1.0, 2.0, 7.0]), seed=seeds)
@few
def test_nodes_are_read_exactly_and_say_which_displacement_they_stand_for(
    resolution: int, reach: float, seed: int
) -> None:
    values = torch.randn(3, resolution, resolution, generator=torch.Generator().manual_seed(seed), **wide)
    node = reach * (2 * torch.arange(resolution, **wide) / (resolution - 1) - 1)
    y, x = torch.meshgrid(node, node, indexing="ij")
    nodes = torch.stack([x, y], dim=-1)
    torch.testing.assert_close(BiasTable(values, reach)(nodes), values.movedim(0, -1))
    made = BiasTable.of(plane, resolution=resolution, reach=reach, **wide)
    assert made.reach == reach
    torch.testing.assert_close(made.values.movedim(0, -1), plane(nodes))


@given(seed=seeds, resolution=st.integers(2, 9), reach=st.sampled_from([0.3, 1.0, 7.0]))
@few
def test_between_nodes_it_is_bilinear(seed: int, resolution: int, reach: float) -> None:
    places = displacements(seed, 30, reach)
    table = BiasTable.of(plane, resolution=resolution, reach=reach, **wide)
    found = table(places)
    torch.testing.assert_close(found[:, 0], plane(places)[:, 0])  # linear, so exact at any resolution
    corner = BiasTable(table.values[:, :: resolution - 1, :: resolution - 1], reach)  # its four corners
    torch.testing.assert_close(corner(places), plane(places))


def test_a_quarter_of_the_way_between_four_nodes_by_hand() -> None:
    table = BiasTable(torch.tensor([[[1.0, 2.0], [3.0, 8.0]]]))  # rows are y
    assert table(torch.tensor([[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]])).flatten().tolist() == [1, 2, 3, 8]
    assert table(torch.tensor([-1.0, 0.0])).tolist() == [(0.75 * 1 + 0.25 * 2 + 0.75 * 3 + 0.25 * 8) / 2]


@given(seed=seeds, reach=st.sampled_from([0.3, 1.0, 7.0]))
@few
def test_displacements_outside_are_those_of_the_edge_without_a_gradient(seed: int, reach: float) -> None:
    table = BiasTable(torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(seed), **wide), reach)
    places = (displacements(seed, 30, reach) * 3).requires_grad_()
    found = table(places)
    torch.testing.assert_close(found, table(places.detach().clamp(-reach, reach)))
    (slope,) = torch.autograd.grad(found.sum(), places)
    outside = places.detach().abs() > reach
    assert outside.any()
    assert (slope[outside] == 0).all()
    assert (slope[~outside] != 0).any()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 4), (1, 2, 3)])
def test_displacements_may_have_any_shape_and_be_none(shape: tuple[int, ...]) -> None:
    displacement = torch.linspace(-1, 1, torch.Size(shape).numel() * 2).view(*shape, 2)
    for bias in (BiasTable.of(plane), MLPBias(*(part.float() for part in random_network(0, 3, 2, 1.0)))):
        assert bias(displacement).shape == (*shape, 2)
        one_by_one = [bias(place) for place in displacement.view(-1, 2)]
        if one_by_one:
            torch.testing.assert_close(bias(displacement).view(-1, 2), torch.stack(one_by_one))


def test_gradients_of_a_table_are_those_of_finite_differences() -> None:
    source = torch.Generator().manual_seed(1)
    values = torch.randn(2, 4, 4, generator=source, requires_grad=True, **wide)
    places = (2 * torch.rand(9, 2, generator=source, **wide) - 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, d: BiasTable(v, 1.1)(d), (values, places))


@pytest.mark.parametrize("resolution", [2, 5])
def test_the_gradient_of_the_layers_table_is_that_of_its_network_at_the_nodes(resolution: int) -> None:
    layer = ContinuousPositionBias(6, 3).double()
    table = layer.table(resolution)
    assert table.reach == 2.0
    node = torch.linspace(-2, 2, resolution, **wide)
    y, x = torch.meshgrid(node, node, indexing="ij")
    nodes = torch.stack([x, y], dim=-1)
    weights = torch.randn(resolution, resolution, 3, generator=torch.Generator().manual_seed(2), **wide)
    found, expected = (torch.autograd.grad(bias(nodes), list(layer.parameters()), weights) for bias in (table, layer))
    torch.testing.assert_close(table(nodes), layer(nodes))
    torch.testing.assert_close(found, expected)


def test_the_layers_table_is_within_its_bound() -> None:
    torch.manual_seed(0)
    layer = ContinuousPositionBias(16, 2)
    places = displacements(3, 500, 2.0).float()
    table = layer.table()
    assert table.values.shape == (2, 129, 129)
    error = (table(places) - layer(places)).abs().amax(0)
    assert (error <= table.error_bound(layer.weights().lipschitz_constant())).all()


def test_a_table_is_made_in_the_type_that_was_asked_for() -> None:
    assert BiasTable.of(plane).values.dtype == torch.float32
    assert BiasTable.of(plane).values.shape == (2, 129, 129)
    assert BiasTable.of(plane, **wide).values.dtype == torch.float64
    assert BiasTable.of(plane)(torch.zeros(3, 2, **wide)).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resolution": 1}, ValueError, "resolution must be at least 2, got 1"),
        ({"resolution": 5.0}, TypeError, "resolution must be an integer, got float"),
        ({"resolution": True}, TypeError, "resolution must be an integer, got bool"),
        ({"reach": 0.0}, ValueError, "reach must lie in (0, 1000000.0], got 0.0"),
        ({"reach": -1}, ValueError, "reach must lie in (0, 1000000.0], got -1"),
        ({"reach": float("inf")}, ValueError, "reach must lie in (0, 1000000.0], got inf"),
        ({"reach": float("nan")}, ValueError, "reach must lie in (0, 1000000.0], got nan"),
        ({"reach": "2"}, TypeError, "reach must be a number, got str"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    make: Callable[..., BiasTable] = BiasTable.of
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        make(plane, **options)


def test_strided_displacements_and_those_that_are_not_numbers_are_read() -> None:
    table = BiasTable.of(lambda d: d.sum(-1, keepdim=True), resolution=5)
    displacement = torch.tensor([[0.5, -1.0], [torch.nan, 0.0], [torch.inf, 0.0]]).expand(2, 3, 2).transpose(0, 1)
    expected = torch.tensor([-0.5, torch.nan, 2.0])[:, None, None].expand(3, 2, 1)
    torch.testing.assert_close(table(displacement), expected, equal_nan=True)


def test_a_table_of_a_network_in_low_precision_has_the_precision_that_was_asked_for() -> None:
    assert ContinuousPositionBias(4, 1).bfloat16().table().values.dtype == torch.float32
