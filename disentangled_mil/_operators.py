"""Registration with PyTorch, whose compiler takes an operator whole."""

import typing
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

# What collections are called in signatures that PyTorch 2.6 understands.
_IN_TYPING: dict[Any, Any] = {Sequence: typing.Sequence, list: typing.List}  # noqa: UP006


def operator(name: str) -> Callable[[Callable[..., Any]], "CustomOpDef"]:
    """Make an operator ``disentangled_mil::name`` of a function that changes none of its arguments.

    Its annotations are changed to what every supported PyTorch understands; arguments may be sequences, but no optional
    ones.
    """

    def register(function: Callable[..., Any]) -> "CustomOpDef":
        for parameter, hint in typing.get_type_hints(function).items():
            if known := _IN_TYPING.get(typing.get_origin(hint)):
                function.__annotations__[parameter] = known[typing.get_args(hint)]
        return torch.library.custom_op(f"disentangled_mil::{name}", function, mutates_args=())

    return register


def refuse_gradient(registered: "CustomOpDef", reason: str) -> None:
    """Let the gradient of an operator be a NotImplementedError."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise NotImplementedError(reason)

    registered.register_autograd(refuse)


def refuse_forward_mode(name: str, tensors: Iterable[Tensor]) -> None:
    """Refuse tensors with tangents (``torch.func.jvp``), which an operator would drop without a word."""
    if torch.compiler.is_compiling():
        return
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):  # type: ignore[no-untyped-call]
        raise NotImplementedError(f"{name} has no derivative in forward mode: take it in reverse mode")
