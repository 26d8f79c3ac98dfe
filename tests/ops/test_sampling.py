"""Bilinear reading and spreading: cell centers, hand-computed values, an outside oracle, transposes, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.ops.sampling import bilinear_corners, bilinear_sample, bilinear_spread

few = settings(max_examples=25)
sides = st.integers(1, 6)
seeds = st.integers(0, 10**6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(maps: Tensor, position: Tensor, width: int, height: int) -> Tensor:
    return bilinear_sample(maps, bilinear_corners(position, width, height))


@given(width=sides, height=sides, seed=seeds)
@few
def test_sampling_at_cell_centers_returns_the_cells(width: int, height: int, seed: int) -> None:
    maps = torch.randn(2, width * height, 3, dtype=torch.float64, generator=seeded(seed))
    index = torch.arange(width * height)
    centers = torch.stack([index % width, index // width], dim=-1).double().expand(2, -1, -1)
    assert torch.equal(sample(maps, centers, width, height), maps)


@given(width=sides, height=sides, points=st.integers(1, 9), seed=seeds)
@few
def test_sampling_agrees_with_torch_inside_and_outside(width: int, height: int, points: int, seed: int) -> None:
    source = seeded(seed)
    maps = torch.randn(2, width * height, 3, dtype=torch.float64, generator=source)
    size = torch.tensor([width, height])
    position = torch.rand(2, points, 2, dtype=torch.float64, generator=source) * (size + 3) - 2
    normalized = (2 * position + 1) / size - 1
    images = maps.transpose(1, 2).unflatten(2, (height, width))
    oracle = torch.nn.functional.grid_sample(images, normalized[:, None], align_corners=False)[:, :, 0]
    torch.testing.assert_close(sample(maps, position, width, height), oracle.transpose(1, 2))


def test_a_position_between_four_cells_is_their_weighted_mean() -> None:
    maps = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    position = torch.tensor([[[0.25, 0.5], [1.0, 1.0], [-0.5, 0.0], [5.0, 5.0]]])
    assert sample(maps, position, 2, 2).flatten().tolist() == [2.25, 4.0, 0.5, 0.0]


@given(width=sides, height=sides, points=st.integers(1, 9), seed=seeds)
@few
def test_spreading_is_the_transpose_of_sampling(width: int, height: int, points: int, seed: int) -> None:
    source = seeded(seed)
    maps = torch.randn(2, width * height, 1, dtype=torch.float64, generator=source)
    values = torch.randn(2, points, dtype=torch.float64, generator=source)
    position = torch.rand(2, points, 2, dtype=torch.float64, generator=source) * 8 - 1
    corners = bilinear_corners(position, width, height)
    spread = bilinear_spread(values, corners, width * height)
    left = (bilinear_sample(maps, corners)[..., 0] * values).sum(1)
    torch.testing.assert_close(left, (maps[..., 0] * spread).sum(1))


@given(width=sides, height=sides, points=st.integers(1, 9), seed=seeds)
@few
def test_spreading_inside_keeps_the_total(width: int, height: int, points: int, seed: int) -> None:
    source = seeded(seed)
    values = torch.rand(3, points, dtype=torch.float64, generator=source)
    position = torch.rand(3, points, 2, dtype=torch.float64, generator=source)
    position = position * torch.tensor([width - 1, height - 1])
    spread = bilinear_spread(values, bilinear_corners(position, width, height), width * height)
    torch.testing.assert_close(spread.sum(1), values.sum(1))


def test_gradients_reach_maps_values_and_positions(generator: torch.Generator) -> None:
    maps = torch.randn(2, 6, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    values = torch.randn(2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    inside = torch.rand(2, 3, 2, dtype=torch.float64, generator=generator) * torch.tensor([2, 1])
    outside = torch.tensor([[[-0.4, 2.7]]], dtype=torch.float64).expand(2, -1, -1)
    position = torch.cat([inside, outside], dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, p: sample(m, p, 3, 2), (maps, position))
    assert torch.autograd.gradcheck(lambda v, p: bilinear_spread(v, bilinear_corners(p, 3, 2), 6), (values, position))


@pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_positions_that_are_nowhere_weigh_nothing(coordinate: float) -> None:
    corners = bilinear_corners(torch.tensor([[coordinate, 0.0]]), 3, 2)
    assert corners.weight.tolist() == [[0.0] * 4]
    assert ((corners.cell >= 0) & (corners.cell < 6)).all()


def test_indices_of_huge_maps_are_exact() -> None:
    side = 5000  # its last index is beyond the whole numbers of float32
    corners = bilinear_corners(torch.tensor([[side - 1.0, side - 1.0], [side - 2.0, side - 1.0]]), side, side)
    assert corners.cell[:, 0].tolist() == [side**2 - 1, side**2 - 2]


def test_non_contiguous_maps_and_positions_are_read_alike(generator: torch.Generator) -> None:
    maps = torch.randn(3, 6, 2, generator=generator).transpose(0, 2)
    position = torch.rand(2, 2, 5, generator=generator).transpose(1, 2)
    assert torch.equal(sample(maps, position, 3, 2), sample(maps.contiguous(), position.contiguous(), 3, 2))


def test_autocast_does_not_round_samples(generator: torch.Generator) -> None:
    maps = torch.randn(2, 6, 2, generator=generator)
    position = torch.rand(2, 5, 2, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = sample(maps, position, 3, 2)
    assert torch.equal(found, sample(maps, position, 3, 2))
