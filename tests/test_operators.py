"""Operators are registered so that every supported PyTorch understands them."""

import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from disentangled_mil._operators import operator, refuse_gradient, with_gradient, zeros_like


def doubled(parts: Sequence[Tensor], maybe: Tensor | None, times: Sequence[float]) -> list[Tensor]:
    return [2 * part for part in parts]


def test_collections_in_signatures_have_the_names_that_pytorch_2_6_knows() -> None:
    registered = operator("test_doubled")(doubled)
    assert typing.get_type_hints(doubled) == {
        "parts": typing.Sequence[Tensor],
        "maybe": Tensor | None,
        "times": typing.Sequence[float],
        "return": typing.List[Tensor],  # noqa: UP006
    }
    assert registered([torch.ones(1)], None, [1.0])[0].item() == 2
    assert torch.ops.disentangled_mil.test_doubled([torch.ones(1)], None, [1.0])[0].item() == 2


def halved(whole: Tensor) -> Tensor:
    return whole / 2


def test_a_refused_gradient_says_why() -> None:
    registered = operator("test_halved")(halved)
    refuse_gradient(registered, "halves have none")
    half = registered(torch.ones((), requires_grad=True))
    with pytest.raises(NotImplementedError, match="halves have none"):
        half.backward()


class Parts(NamedTuple):
    """A named value inside of another one."""

    tensors: list[Tensor]
    name: str


class Given(NamedTuple):
    """What the toy operator takes."""

    x: Tensor
    parts: Parts
    maybe: Tensor | None
    factor: float
    flag: bool


class Found(NamedTuple):
    """What it returns."""

    total: Tensor
    count: Tensor


asked: list[Any] = []


def toy_empty(given: Given) -> Found:
    return Found(torch.empty_like(given.x), given.x.new_empty(()))


def toy_forward(given: Given) -> Found:
    assert isinstance(given.parts, Parts)
    assert given.parts.name == "two"
    assert not torch.is_autocast_enabled("cpu")
    total = toy_empty(given).total.copy_(given.factor * given.x.square())
    for part in (*given.parts.tensors, *([] if given.maybe is None else [given.maybe])):
        total += part
    return Found(total, given.x.sum())


def toy_backward(given: Given, results: Found, arriving: Found, wanted: Given) -> Given:
    """Gradients that are wanted, and None in place of all others."""
    assert results.total.shape == given.x.shape
    assert results.count is None
    assert not torch.is_autocast_enabled("cpu")
    asked.append((wanted.x, wanted.parts.tensors, wanted.maybe))
    into_total = torch.zeros_like(given.x) if arriving.total is None else arriving.total
    into_count = torch.zeros_like(given.x) if arriving.count is None else arriving.count
    into_parts: Any = [into_total.clone() if part else None for part in wanted.parts.tensors]
    gradients: dict[str, Any] = {
        "x": 2 * given.factor * given.x * into_total + into_count if wanted.x else None,
        "parts": given.parts._replace(tensors=into_parts if any(wanted.parts.tensors) else None),
        "maybe": into_total.clone() if wanted.maybe else None,
    }
    return given._replace(**gradients)


toy = with_gradient(
    "test_toy",
    Given,
    Found,
    empty=toy_empty,
    forward=toy_forward,
    backward=toy_backward,
    saved=["total"],
    caller="toy",
    no_second="toy has no second gradient",
)


def draw(count: int = 2, maybe: bool = True) -> Given:
    source = torch.Generator().manual_seed(0)
    x, y, *parts = (torch.rand(3, 4, dtype=torch.float64, generator=source).requires_grad_() for _ in range(count + 2))
    return Given(x, Parts(parts, "two"), y if maybe else None, 3.0, True)


def dense(given: Given) -> Tensor:
    total = given.factor * given.x.square() + (0 if given.maybe is None else given.maybe)
    return total + sum(given.parts.tensors)


def tensors_of(given: Given) -> list[Tensor]:
    return [given.x, *given.parts.tensors, *([] if given.maybe is None else [given.maybe])]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("maybe", [True, False])
def test_an_operator_over_named_values_has_values_and_gradients(count: int, maybe: bool) -> None:
    given = draw(count, maybe)
    found = toy(given)
    torch.testing.assert_close([found.total, found.count], [dense(given), given.x.sum()])
    weights = torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((found.total * weights).sum() + found.count, tensors_of(given)),
        torch.autograd.grad((dense(given) * weights).sum() + given.x.sum(), tensors_of(given)),
    )
    torch.library.opcheck(
        torch.ops.disentangled_mil.test_toy.default, (given.x, given.parts.tensors, "two", given.maybe, 3.0, True)
    )


def test_gradients_are_computed_for_tensors_that_want_one() -> None:
    for wanted in ([True, False, True, False], [False, True, False, False], [False, False, False, True]):
        given = draw()
        for tensor, is_wanted in zip(tensors_of(given), wanted, strict=True):
            tensor.requires_grad_(is_wanted)
        toy(given).total.sum().backward()
        assert asked[-1] == (wanted[0], wanted[1:3], wanted[3])
        assert [tensor.grad is not None for tensor in tensors_of(given)] == wanted


def test_an_output_that_nobody_uses_has_no_gradient() -> None:
    given = draw()
    (slope,) = torch.autograd.grad(toy(given).count, given.x)
    assert (slope == 1).all()


def test_gradients_have_the_strides_of_transposed_arguments() -> None:
    given = draw()
    given = given._replace(x=given.x.detach().T.contiguous().T.requires_grad_())
    slope = torch.autograd.grad(toy(given).total.sum(), given.x)[0]
    torch.testing.assert_close(slope, 6 * given.x)
    assert slope.stride() == given.x.stride()
    torch.library.opcheck(
        torch.ops.disentangled_mil.test_toy.default, (given.x, given.parts.tensors, "two", given.maybe, 3.0, True)
    )


def test_operators_run_without_autocast() -> None:
    given = draw()
    with torch.autocast("cpu", torch.bfloat16):
        total = toy(given).total
        assert total.dtype == torch.float64
        total.sum().backward()
    torch.testing.assert_close(given.x.grad, 6 * given.x.detach())


def test_a_gradient_of_a_gradient_raises_an_error() -> None:
    given = draw()
    (slope,) = torch.autograd.grad(toy(given).total.square().sum(), given.x, create_graph=True)
    with pytest.raises(NotImplementedError, match="toy has no second gradient"):
        slope.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
@pytest.mark.parametrize("of", ["x", "part"])
def test_a_forward_mode_derivative_raises_an_error(of: str) -> None:
    given = draw()

    def call(tensor: Tensor) -> Tensor:
        changed = {"x": tensor} if of == "x" else {"parts": Parts([tensor], "two")}
        return toy(given._replace(**changed)).total

    with pytest.raises(NotImplementedError, match="toy has no derivative in forward mode"):
        torch.func.jvp(call, (given.x.detach(),), (torch.ones_like(given.x),))


def test_an_operator_may_return_one_tensor() -> None:
    class One(NamedTuple):
        x: Tensor

    doubled = with_gradient(
        "test_one",
        One,
        One,
        empty=lambda given: One(torch.empty_like(given.x)),
        forward=lambda given: One(2 * given.x),
        backward=lambda given, results, arriving, wanted: One(2 * arriving.x),
        caller="doubled",
        no_second="",
    )
    x = torch.rand(3, requires_grad=True)
    torch.testing.assert_close(doubled(One(x)).x, 2 * x)
    assert torch.autograd.grad(doubled(One(x)).x.sum(), x)[0].tolist() == [2.0] * 3
    torch.library.opcheck(torch.ops.disentangled_mil.test_one.default, (x,))


def test_zeros_stand_in_place_of_all_tensors() -> None:
    given = draw(maybe=False)
    zeros = zeros_like(given)
    assert [tensor.count_nonzero() for tensor in tensors_of(zeros)] == [0, 0, 0]
    assert (zeros.parts.name, zeros.maybe, zeros.factor) == ("two", None, 3.0)


def test_uninitialized_memory_that_an_operator_returns_is_found() -> None:
    """What the operator tests rely on: with deterministic algorithms torch.empty is filled with NaN."""

    class One(NamedTuple):
        x: Tensor

    def forward(given: One) -> One:
        result = torch.empty_like(given.x)
        result[1:] = given.x[1:]
        return One(result)  # the first entry was forgotten

    forgetful = with_gradient(
        "test_forgetful",
        One,
        One,
        empty=lambda given: One(torch.empty_like(given.x)),
        forward=forward,
        backward=lambda given, results, arriving, wanted: arriving,
        caller="forgetful",
        no_second="",
    )
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert forgetful(One(torch.ones(3))).x.isnan().tolist() == [True, False, False]
    finally:
        torch.use_deterministic_algorithms(before)
