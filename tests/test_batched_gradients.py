"""Gradients of several losses in one backward pass, as TorchJD and Jacobians take them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disentangled_mil
from disentangled_mil import (
    DMSF,
    ITA,
    Bag,
    ContinuousPositionBias,
    DeformableCrossAttention,
    GeneNetwork,
    GeneSelection,
    Grid,
    LinearModel,
    MagnificationGate,
    PatchEncoder,
    SNNEncoder,
    Student,
    SubspaceHead,
    Teacher,
)
from disentangled_mil import nn as layers_of_package
from disentangled_mil._operators import operator
from disentangled_mil.ops import depthwise_windows
from tests.support.trees import results

GENES = {"tumor": 5, "tme": 7}
SMALL: dict[str, Any] = {"heads": 2, "dim_head": 4, "groups": 2, "downsample": 2}
MODEL: dict[str, Any] = {"dim": 8, "magnifications": ("20x",), **SMALL}
GRID = Grid.square([9, 6])


def values(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def each(*shape: int) -> dict[str, Tensor]:
    return {name: values(*shape, width) for name, width in GENES.items()}


X, TOKENS = values(2, 9, 8), dict.fromkeys(GENES, values(2, 3, 8))
CASES: list[tuple[nn.Module, tuple[Any, ...]]] = [
    (ContinuousPositionBias(8, 2), (values(4, 2),)),
    *((DeformableCrossAttention(8, backend=b, dropout=0.5, **SMALL), (X, X, GRID)) for b in ("streaming", "reference")),
    (DeformableCrossAttention(8, bias="exact", **SMALL), (X, X, GRID)),
    (DeformableCrossAttention(8, max_keys=4, **SMALL), (X, X)),
    (DMSF(8, tuple(GENES), selection_heads=2, **SMALL), (X, TOKENS, GRID)),
    (DMSF(8, tuple(GENES), selection_query="fused", selection_heads=2, **SMALL), (X, TOKENS)),
    (GeneSelection(8, heads=2), (X, values(2, 3, 8))),
    (ITA(8), (X,)),
    (MagnificationGate(("10x", "20x"), rule="learned"), ({"10x": values(2, 3), "20x": values(2, 3).exp()},)),
    (PatchEncoder(8, 4), (X,)),
    (SNNEncoder(GENES, 8), (each(2),)),
    (SubspaceHead(8, 3), (dict.fromkeys(GENES, values(2, 8)),)),
    (GeneNetwork(GENES, 3), (each(2),)),
    (LinearModel({"tumor": 5}, 3), ({"tumor": values(2, 5)},)),
    (Student(8, 3, **MODEL), ({"20x": Bag(X, GRID)},)),
    (Teacher(8, GENES, 3, selection_heads=2, **MODEL), ({"20x": Bag(X, GRID)}, each(2))),
]


def one_by_one(gradients: Callable[[Tensor], Any], directions: Tensor) -> list[Tensor]:
    return [torch.stack(rows) for rows in zip(*map(gradients, directions), strict=True)]


@pytest.mark.parametrize(("layer", "inputs"), CASES, ids=lambda value: type(value).__name__)
def test_batched_gradients_of_every_layer_are_those_of_one_loss_after_another(
    layer: nn.Module, inputs: tuple[Any, ...]
) -> None:
    torch.manual_seed(0)
    layer = layer.double().train()
    found = [part for part in results(layer(*inputs)) if part.requires_grad]
    losses = torch.stack([part.sin().sum() for part in found] + [found[0].square().sum()])
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]

    def gradients(direction: Tensor, *, batched: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            losses,
            parameters,
            direction,
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
            materialize_grads=True,
        )

    directions = torch.eye(len(losses), dtype=torch.float64)
    expected = one_by_one(gradients, directions)
    assert any(part.any() for part in expected)
    torch.testing.assert_close(list(gradients(directions, batched=True)), expected)
    torch.testing.assert_close(list(torch.vmap(gradients)(directions)), expected)


def test_every_public_layer_is_among_them() -> None:
    public = {getattr(room, name) for room in (disentangled_mil, layers_of_package) for name in room.__all__}
    modules = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    losses = {disentangled_mil.DistillationLoss, disentangled_mil.SubspaceDistillation}
    abstract = {kind for kind in modules if kind.__subclasses__() and kind.forward is nn.Module.forward}
    assert modules - losses - abstract == {type(layer) for layer, _ in CASES}


def split_in_two(whole: Tensor, parts: list[Tensor], factor: float) -> list[Tensor]:
    return [factor * whole, *(whole + part for part in parts)]


def test_operators_over_lists_are_called_once_per_element() -> None:
    registered = operator("test_split_in_two")(split_in_two)
    whole, parts = torch.rand(4, 3), [torch.rand(3, 4), torch.rand(3)]
    found = torch.vmap(lambda x, y: registered(x, [y, parts[1]], 2.0), in_dims=(0, 1))(whole, parts[0])
    torch.testing.assert_close(found, [2 * whole, whole + parts[0].T, whole + parts[1]])


def test_operators_are_vmapped_forward() -> None:
    cells, kernel = values(3, 1, 2, 4, 5), values(3, 3, 5)
    window = torch.randint(0, 4, (1, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    found = torch.vmap(lambda x: depthwise_windows(x, window, kernel))(cells)
    torch.testing.assert_close(found, torch.stack([depthwise_windows(x, window, kernel) for x in cells]))
