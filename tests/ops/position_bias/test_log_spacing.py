"""Log-spaced displacements, with and without coordinates that queries share."""

import pytest
import torch
from torch import Tensor

from disentangled_mil.ops.position_bias import _log_spacing
from disentangled_mil.ops.position_bias._log_spacing import SpacedAxis, spaced


@pytest.mark.parametrize(
    ("coordinates", "most", "logarithms"),
    [
        pytest.param(5, 5, 5 * 2 * 3, id="columns"),
        pytest.param(5, 4, 40 * 2 * 3, id="too many to hold"),
        pytest.param(30, 40, 40 * 2 * 3, id="hardly any shared"),
    ],
)
def test_logarithms_are_taken_once_for_every_coordinate(
    monkeypatch: pytest.MonkeyPatch, coordinates: int, most: int, logarithms: int
) -> None:
    taken = []

    def record(displacement: Tensor) -> Tensor:
        taken.append(displacement.numel())
        return spaced(displacement)

    monkeypatch.setattr(_log_spacing, "spaced", record)
    queries = torch.arange(40, dtype=torch.float64).remainder(coordinates)
    keys = 10 * torch.rand(2, 3, dtype=torch.float64)
    axis = SpacedAxis(queries, keys, side=2.5, most=most)
    displacement = (queries[:, None] - keys[:, None]).requires_grad_()
    expected = displacement.sign() * displacement.abs().log1p() / 2.5
    (slopes,) = torch.autograd.grad(expected.sum(), displacement)
    tiles = [slice(0, 13), slice(13, 40)]
    torch.testing.assert_close(torch.cat([axis.places(tile) for tile in tiles], 1), expected.detach())
    torch.testing.assert_close(torch.cat([axis.slopes(tile) for tile in tiles], 1), slopes)
    assert sum(taken) == logarithms
