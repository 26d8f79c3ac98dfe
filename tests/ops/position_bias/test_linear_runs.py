"""Runs of nodes on which a network of ReLUs is linear, and cells in which it is folded: against the network."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear, relu

from disentangled_mil import ContinuousPositionBias
from disentangled_mil.ops.position_bias._folds import FoldRows
from disentangled_mil.ops.position_bias._linear_runs import LinearRuns

exact: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
# Planes are drawn from steps between nodes.
folded: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def network(seed: int, features: int, outputs: int, zeros: float) -> list[Tensor]:
    """Parts of which a share is zero: units that nothing reaches, and kinks along an axis or through a corner."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(features, 2), (features,), (features, features), (features,), (outputs, features), (outputs,)]
    parts = [torch.randn(*shape, dtype=torch.float64, generator=source) for shape in shapes]
    return [part * (torch.rand(part.shape, generator=source) >= zeros) for part in parts]


def nodes(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Their places [R, S, 2]."""
    y, x = (torch.linspace(-1, 1, count, dtype=dtype) for count in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def layers(parts: list[Tensor], places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the first and second ReLUs, and the result, before its last axis is moved to the front."""
    first = linear(places, *parts[:2])
    second = linear(relu(first), *parts[2:4])
    return first, second, linear(relu(second), *parts[4:])


shapes = {
    "seed": st.integers(0, 10**6),
    "features": st.sampled_from([1, 3, 8]),
    "outputs": st.integers(1, 2),
    "zeros": st.sampled_from([0.0, 0.3, 1.0]),
    "height": st.integers(2, 30),
    "width": st.integers(2, 30),
    "at_once": st.sampled_from([1, 25, 10**4]),
}


@given(**shapes)
@settings(max_examples=80)
def test_values_are_the_networks_and_gradients_pass_through_the_ends(
    seed: int, features: int, outputs: int, zeros: float, height: int, width: int, at_once: int
) -> None:
    parts = [part.requires_grad_() for part in network(seed, features, outputs, zeros)]
    runs = LinearRuns([part.detach() for part in parts], height, width, at_once)
    expected = layers(parts, nodes(height, width))[2].movedim(-1, 0)
    ends = layers(parts, runs.ends)[2]
    torch.testing.assert_close(runs.expand(ends.detach()), expected.detach(), **exact)

    change = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slopes = torch.autograd.grad(expected, parts, change)
    torch.testing.assert_close(torch.autograd.grad(ends, parts, runs.contract(change)), slopes, **exact)


@given(**shapes)
@settings(max_examples=80)
def test_cells_that_are_not_kinked_are_linear(
    seed: int, features: int, outputs: int, zeros: float, height: int, width: int, at_once: int
) -> None:
    parts = network(seed, features, outputs, zeros)
    runs = LinearRuns(parts, height, width, at_once)
    inner = ~runs.kinked
    at_edge = torch.ones_like(inner)
    at_edge[1:-1, 1:-1] = False
    assert not inner[at_edge].any()
    # Places all over each cell have the signs of its corner.
    pitch = torch.tensor([2 / (width - 1), 2 / (height - 1)], dtype=torch.float64)
    corner = nodes(height, width)[:-1, :-1][inner]  # [cells, 2]
    within = torch.rand(50, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for at_corner, inside in zip(layers(parts, corner)[:2], layers(parts, corner + pitch * within)[:2], strict=True):
        assert ((inside > 0) == (at_corner > 0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_nodes_are_ends_and_few_cells_kinked(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [part.detach().to(dtype) for part in ContinuousPositionBias(32, 1).weights()]
    runs = LinearRuns(parts, 400, 500, 10**4)
    assert len(runs.ends) < 0.2 * 400 * 500
    first, second, values = layers(parts, nodes(400, 500, dtype))
    torch.testing.assert_close(runs.expand(layers(parts, runs.ends)[2])[0], values[..., 0], rtol=1e-5, atol=1e-6)
    on = torch.cat([first, second], -1) > 0
    down, right = (on[1:] != on[:-1]).any(-1), (on[:, 1:] != on[:, :-1]).any(-1)
    crossed = down[:, 1:] | down[:, :-1] | right[1:] | right[:-1]
    assert not (crossed & ~runs.kinked).any()
    # All but the edge and what rounding leaves open is crossed.
    assert (runs.kinked & ~crossed).double().mean() < 0.02


def test_a_kink_along_a_line_of_nodes_belongs_to_both_sides() -> None:
    """A unit whose sign rounding decides, all along a line or at a node, is in no cell that counts as linear."""
    w1 = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    parts = [w1, torch.zeros(2), torch.eye(2), torch.zeros(2), torch.ones(1, 2), torch.zeros(1)]
    kinked = LinearRuns(parts, 9, 7, 100).kinked
    assert kinked[3:5].all()
    assert kinked[:, 2:4].all()
    assert not kinked[1:3, 1:2].any()


def places_within(runs: LinearRuns, seed: int, count: int = 20) -> tuple[Tensor, Tensor]:
    """Some places [P, 2] all over every folded cell, and which cell they lie in [P]."""
    height, width = (size + 1 for size in runs.kinked.shape)
    cell = runs.folds.cells.repeat(count)
    source = torch.Generator().manual_seed(seed)
    within = torch.rand(len(cell), 2, dtype=torch.float64, generator=source)
    corner = torch.stack([cell % (width - 1), cell // (width - 1)], -1)
    place = 2 * (corner + within) / torch.tensor([width - 1, height - 1]) - 1
    return place, torch.arange(len(runs.folds.cells)).repeat(count)


@given(
    seed=st.integers(0, 10**6),
    features=st.sampled_from([1, 3, 8]),
    outputs=st.integers(1, 2),
    zeros=st.sampled_from([0.0, 0.3]),
    unread=st.booleans(),
    height=st.integers(4, 30),
    width=st.integers(4, 30),
)
@settings(max_examples=80)
def test_values_and_gradients_of_folds_are_the_networks(
    seed: int, features: int, outputs: int, zeros: float, unread: bool, height: int, width: int
) -> None:
    parts = network(seed, features, outputs, zeros)
    if unread:
        parts[4].zero_()  # all planes are equal, and their gradients are not
    parts = [part.requires_grad_() for part in parts]
    runs = LinearRuns([part.detach() for part in parts], height, width, 10**4)
    assume(len(runs.folds.cells))
    table = layers(parts, nodes(height, width))[2].movedim(-1, 0)
    place, which = places_within(runs, seed)
    place.requires_grad_()
    expected = layers(parts, place)[2]
    planes = runs.folds.planes(table.detach())
    into_planes = torch.zeros_like(planes)
    rows = FoldRows(runs.folds, planes, which, place.detach(), into_planes)
    torch.testing.assert_close(rows.values(), expected.detach(), **folded)

    change = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    *slopes, moved = torch.autograd.grad(expected, [*parts, place], change, allow_unused=True)
    torch.testing.assert_close(rows.backward(change, True), moved, **folded)
    into_table = torch.zeros_like(table)
    runs.folds.contract(into_planes, into_table)
    found = torch.autograd.grad(table, parts, into_table)
    torch.testing.assert_close(found, tuple(slopes), **folded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_most_kinked_cells_are_folds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [part.detach().to(dtype) for part in ContinuousPositionBias(32, 1).weights()]
    runs = LinearRuns(parts, 400, 500, 10**4)
    assert len(runs.folds.cells) > 0.6 * runs.kinked.sum()
    assert runs.kinked.flatten()[runs.folds.cells].all()
    place, which = places_within(runs, 0)
    values = layers(parts, place.to(dtype))[2]
    planes = runs.folds.planes(layers(parts, nodes(400, 500, dtype))[2].movedim(-1, 0))
    rows = FoldRows(runs.folds, planes, which, place.to(dtype), torch.zeros_like(planes))
    torch.testing.assert_close(rows.values(), values, rtol=1e-5, atol=2e-6)


def test_two_kinks_or_one_through_a_corner_are_no_fold() -> None:
    w1 = torch.tensor([[1.0, 0.5], [1.0, 0.5 + 1e-3]])
    tail = [torch.eye(2), torch.ones(2), torch.ones(1, 2), torch.zeros(1)]
    assert len(LinearRuns([w1, torch.tensor([0.1, 0.1]), *tail], 9, 9, 100).folds.cells) == 0
    through = LinearRuns([w1, torch.tensor([0.0, 9.0]), *tail], 9, 9, 100)  # at every other node
    assert through.kinked[1:-1, 1:-1].any()
    assert len(through.folds.cells) == 0
