"""Operators are registered so that every supported PyTorch understands them."""

import typing
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from disentangled_mil._operators import operator, refuse_gradient


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
