"""Layers as ``torch.nn.DataParallel`` replicates them: with tensors in the place of parameters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disentangled_mil import (
    DMSF,
    ITA,
    DeformableCrossAttention,
    GeneSelection,
    MagnificationGate,
    PatchEncoder,
    SNNEncoder,
    SubspaceHead,
)

NAMES = ("tumor", "tme")
SMALL: dict[str, Any] = {"heads": 2, "dim_head": 4, "groups": 2, "downsample": 2}


def tokens(count: int = 9, width: int = 8) -> Tensor:
    return torch.randn(2, count, width, generator=torch.Generator().manual_seed(count))


def replica(module: nn.Module) -> nn.Module:
    """What DataParallel makes on every device, without a device."""
    copy = module._replicate_for_data_parallel()
    copy._former_parameters = {}
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        copy._parameters.pop(name, None)
        setattr(copy, name, None if parameter is None else parameter * 1)
    return copy


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (PatchEncoder(8, 8), [tokens().half()]),
        (SNNEncoder({"tumor": 5}, 8), [{"tumor": tokens(width=5)[:, 0].double()}]),
        (DeformableCrossAttention(8, **SMALL), [tokens(), tokens()]),
        (DeformableCrossAttention(8, bias="table", **SMALL), [tokens(), tokens()]),
        (DMSF(8, NAMES, selection_heads=2, **SMALL), [tokens(), dict.fromkeys(NAMES, tokens(3))]),
        (GeneSelection(8, heads=2), [tokens(), tokens(3)]),
        (ITA(8), [tokens()]),
        (SubspaceHead(8, 3, NAMES), [dict.fromkeys(NAMES, tokens()[:, 0])]),
        (MagnificationGate(("10x", "20x"), rule="learned"), [{"10x": tokens()[:, 0], "20x": tokens()[:, 1]}]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_replica_computes_what_the_layer_does(layer: nn.Module, inputs: list[Any]) -> None:
    def first(output: Any) -> Tensor:
        while not isinstance(output, Tensor):
            output = next(iter(output.values() if isinstance(output, dict) else output))
        return output

    layer.eval()
    found = first(replica(layer)(*inputs))
    assert torch.equal(found, first(layer(*inputs)))
    assert found.requires_grad
