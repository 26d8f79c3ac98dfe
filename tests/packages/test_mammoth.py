"""Mammoth, which takes no mask, before ITA."""

import pytest
import torch

from disentangled_mil import ITA
from tests.packages.page import page

pytest.importorskip("mammoth")
from mammoth import Mammoth

FEATURES, DIM = 8, 16


@pytest.fixture
def padded():
    torch.manual_seed(0)
    x = torch.randn(2, 12, FEATURES)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, [0, 5, 11]] = False
    x[~mask] = 9.0
    return x, mask


def mammoth() -> Mammoth:
    sizes = {"num_experts": 3, "num_slots": 2, "num_heads": 4, "slot_dim": 8}
    return Mammoth(FEATURES, DIM, keep_slots=False, **sizes)


def test_padding_changes_nothing_before_ita(padded):
    x, mask = padded
    embed, gather = page()["Unpadded"](mammoth()).eval(), ITA(DIM, 2).eval()
    together = gather(embed(x, mask), mask).prototypes
    for row in range(2):
        alone = gather(embed.layer(x[row][mask[row]][None])).prototypes
        torch.testing.assert_close(together[row : row + 1], alone)
    leaked = gather(embed.layer(x), mask).prototypes  # the mask of ITA alone comes too late
    assert not torch.allclose(leaked[1], together[1], atol=1e-3)


def test_gradients_reach_mammoth_through_ita(padded):
    x, mask = padded
    embed, gather = page()["Unpadded"](mammoth()), ITA(DIM, 2)
    gather(embed(x, mask), mask).prototypes.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in embed.parameters())


def test_slots_take_the_place_of_patches_by_default():
    layer = Mammoth(FEATURES, DIM, num_experts=3, num_slots=2, num_heads=4, slot_dim=8)
    assert layer(torch.randn(1, 12, FEATURES)).shape == (1, 3 * 2, DIM)
