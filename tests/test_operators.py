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
    """What the operator of these tests takes."""

    x: Tensor
    parts: Parts
    maybe: Tensor | None
    factor: float
    flag: bool


class Found(NamedTuple):
    """What it returns."""

    total: Tensor
    count: Tensor


def test_an_operator_over_named_values_has_values_gradients_and_shapes() -> None:
    asked = []

    def empty(given: Given) -> Found:
        return Found(torch.empty_like(given.x), given.x.new_empty(()))

    def forward(given: Given) -> Found:
        assert isinstance(given.parts, Parts)
        assert given.parts.name == "two"
        total = given.x * given.factor + sum(given.parts.tensors)
        return Found(total if given.maybe is None else total + given.maybe, given.x.sum())

    def backward(given: Given, results: Found, arriving: Found, wanted: Any) -> Given:
        asked.append((wanted.x, wanted.parts.tensors, wanted.maybe, arriving.count is None))
        assert results.total.shape == given.x.shape
        assert results.count is None
        into = zeros_like(given)
        into.x.add_(arriving.total * given.factor)
        for part in into.parts.tensors:
            part.add_(arriving.total)
        return into

    affine = with_gradient(
        "test_affine",
        Given,
        Found,
        empty=empty,
        forward=forward,
        backward=backward,
        saved=["total"],
        caller="affine",
        no_second="affine has no second gradient",
    )
    x, a, b = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in "xab")
    b.requires_grad_(False)
    for count in (2, 0):
        given = Given(x, Parts([a, b][:count], "two"), None, 3.0, True)
        total = affine(given).total
        torch.testing.assert_close(total, 3 * x + (a + b if count else 0))
        assert torch.autograd.grad(total.sum(), x, retain_graph=True)[0].tolist() == [3.0] * 3
        assert asked[-1] == (True, [True, False][:count], None, True)
        arguments = (x, [a, b][:count], "two", None, 3.0, True)
        torch.library.opcheck(torch.ops.disentangled_mil.test_affine.default, arguments)
    (slope,) = torch.autograd.grad(total.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="affine has no second gradient"):
        slope.sum().backward()


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
