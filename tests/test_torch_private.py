"""Private interfaces of PyTorch stand in one module, which says what happens without them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

import disentangled_mil
from disentangled_mil import _torch_private

PACKAGE = Path(disentangled_mil.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "_torch_private")
DANGEROUS = {"aten", "prims", "forward_ad"}  # public modules whose contents PyTorch does not promise


def is_private(name: str) -> bool:
    return name in DANGEROUS or (name.startswith("_") and not name.endswith("__"))


def private_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names below ``torch`` that have a private part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if any(map(is_private, name.split("."))))


@pytest.mark.parametrize(
    "source",
    [
        "from torch.utils._pytree import tree_map",
        "from torch.autograd import forward_ad",
        "import torch._dynamo",
        "torch._C.f()",
        "y = torch.ops.aten.threshold_backward(x, x, 0)",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert list(private_names(ast.parse(source)))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_uses_private_names_of_pytorch(path: Path) -> None:
    assert not list(private_names(ast.parse(path.read_text(encoding="utf-8"))))


class _Nothing:
    """An object without attributes."""


@pytest.fixture(params=[False, True], ids=["", "without the interface"])
def interface(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """PyTorch with and without its private operators."""
    if request.param:
        monkeypatch.setattr(torch.ops, "aten", _Nothing())
    return not request.param


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.usefixtures("interface")
def test_gradients_of_softmax_and_relu_are_those_of_autograd() -> None:
    x, gradient = leaf(3, 4), leaf(3, 4).detach().cos()
    for function, backward in (
        (lambda x: x.softmax(-1), _torch_private.softmax_backward),
        (torch.relu, _torch_private.relu_backward),
    ):
        y = function(x)
        (expected,) = torch.autograd.grad(y, x, gradient)
        torch.testing.assert_close(backward(gradient, y.detach()), expected)


def test_gradients_of_reading_a_table_are_those_of_autograd_or_an_error_says_what_to_do(interface: bool) -> None:
    table, place = leaf(2, 1, 4, 5), leaf(2, 3, 3, 2)
    read = grid_sample(table, place, align_corners=True, padding_mode="border")
    gradient = read.detach().cos()
    expected = torch.autograd.grad(read, (table, place), gradient) if interface else ()
    arguments = gradient, table.detach(), place.detach()
    if interface:
        found = _torch_private.grid_sample_backward(*arguments, wanted=(True, True))
        torch.testing.assert_close(found, expected)
    else:
        with pytest.raises(RuntimeError, match=r'needs aten::grid_sampler_2d_backward.*backend="reference"'):
            _torch_private.grid_sample_backward(*arguments, wanted=(True, True))


def test_without_a_registry_of_containers_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_private, "_pytree", None)
    _torch_private.register_pytree_node(type("Anything", (), {}), list, tuple)
    assert _torch_private.attribute_key("mask") == "mask"


def test_values_are_not_read_where_pytorch_does_not_say_whether_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _torch_private.is_transformed()
    monkeypatch.setattr(torch, "_C", _Nothing())
    assert _torch_private.is_transformed()
