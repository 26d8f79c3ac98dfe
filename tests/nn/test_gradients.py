"""Gradients of the small layers, for inputs and parameters, are those of finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disentangled_mil.nn import GeneSelection, MagnificationGate, PatchEncoder, SNNEncoder, SubspaceHead

MASK = torch.tensor([[True, True, False], [True, True, True]])
GATES = [("max_confidence", "softmax"), ("max_confidence", "hazards"), ("average", "softmax")]
GATES += [("softmax_average", link) for link in ("softmax", "hazards", "identity")]
GATES += [("learned", link) for link in ("softmax", "hazards", "identity")]


def two(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"10x": a, "20x": b}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "gene encoder": (
        lambda: SNNEncoder({"10x": 3, "20x": 4}, 2, hidden=(3,), gene_tokens=2),
        lambda a, b: (two(a, b),),
        ((2, 3), (2, 4)),
    ),
    "patch encoder": (lambda: PatchEncoder(4, 3), lambda x: (x, MASK), ((2, 3, 4),)),
    "gene selection": (lambda: GeneSelection(4, heads=2), lambda x, g: (x, g, MASK), ((2, 3, 4), (2, 2, 4))),
    "subspace head": (lambda: SubspaceHead(3, 2, ("10x", "20x")), lambda a, b: (two(a, b),), ((2, 3), (2, 3))),
    **{
        f"gate, {rule} of {link}": (
            lambda rule=rule, link=link: MagnificationGate(("10x", "20x"), rule=rule, link=link),
            lambda a, b: (two(a, b), torch.tensor([[True, True], [False, True]])),
            ((2, 3), (2, 3)),
        )
        for rule, link in GATES
    },
}


def tensors(value: Any) -> tuple[Tensor, ...]:
    """The tensors in a result, with those of its dictionaries."""
    if isinstance(value, Tensor):
        return (value,)
    parts = value.values() if isinstance(value, dict) else value
    return tuple(tensor for part in parts for tensor in tensors(part))


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_small_layer_are_those_of_finite_differences(case: str) -> None:
    make, arguments, shapes = CASES[case]
    torch.manual_seed(0)
    layer = make().double().eval()
    if isinstance(layer, PatchEncoder):
        layer.fit(torch.randn(9, 4, dtype=torch.float64))
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    parameters = {name: torch.randn_like(parameter).requires_grad_() for name, parameter in layer.named_parameters()}

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        given, own = values[: len(shapes)], dict(zip(parameters, values[len(shapes) :], strict=True))
        return tensors(torch.func.functional_call(layer, own, arguments(*given)))

    assert torch.autograd.gradcheck(forward, (*inputs, *parameters.values()))
