"""Tiles of one bag's scores: how large they are, and what they do not compute."""

from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled_mil.ops import MLPBias, biased_attention
from disentangled_mil.ops._tile_size import DEVICE_FACTOR
from disentangled_mil.ops.attention import _bag
from disentangled_mil.ops.attention._bag import queries_at_once
from disentangled_mil.ops.position_bias import _network, tiled
from disentangled_mil.ops.position_bias._table import TableTile
from tests.support.attention import draw


@pytest.mark.parametrize(("device", "larger"), [("cpu", 1), ("meta", DEVICE_FACTOR)])
def test_tiles_are_larger_elsewhere_than_on_a_cpu(device: str, larger: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bag, "ENTRIES", 4000)
    monkeypatch.setattr(_network, "MOST_PAIRS", 100)
    query = torch.empty(2, 10_000, 4, device=device)
    shapes = [(5, 2), (5,), (5, 5), (5,), (1, 5), (1,)]
    bias = tiled(MLPBias(*(torch.empty(*shape, device=device) for shape in shapes)), torch.float32, pairs=1000)
    assert queries_at_once(query, groups=1, keys=20, bias=None) == 100 * larger
    assert queries_at_once(query, groups=1, keys=20, bias=bias) == max(8, 5 * larger)


@pytest.mark.parametrize("kind", ["network", "table"])
def test_nothing_is_passed_back_to_a_bias_that_wants_no_gradient(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a gradient that nobody wants")

    monkeypatch.setattr(TableTile, "backward", refuse)
    monkeypatch.setattr(_network.HiddenLayers, "backward", refuse)
    given_ = draw(5, kind=kind, queries=90, keys=40)
    for tensor in (*given_["bias"], given_["query_position"], given_["key_position"]):
        if isinstance(tensor, Tensor):
            tensor.requires_grad_(False)
    biased_attention(**given_, backend="streaming").out.sum().backward()
    assert given_["value"].grad is not None
