"""Registration of operators with PyTorch, whose compiler and exporter then treat each of them as one node.

:func:`operator` registers a plain function. :func:`with_gradient` registers a pair of operators, one for the result and
one for its gradient, from functions over named values, which :mod:`._named_values` describes.
"""

import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor

from ._named_values import Named, build, flatten, holds_tensors, join, per_tensor, schema, split
from ._torch_private import CustomOpDef, has_tangent, register_batched

Inputs = TypeVar("Inputs", bound=tuple[Any, ...])
Outputs = TypeVar("Outputs", bound=tuple[Any, ...])

# What collections are called in signatures that PyTorch 2.6 understands.
_IN_TYPING: dict[Any, Any] = {Sequence: typing.Sequence, list: typing.List}  # noqa: UP006


# A rule takes the number of elements, the batched dimension of every argument, and the arguments.
# It returns the results and their batched dimensions.
BatchingRule: TypeAlias = Callable[[int, Sequence[Any], Sequence[Any]], tuple[Any, Any]]


def operator(name: str, *, over_batches: BatchingRule | None = None) -> Callable[[Callable[..., Any]], "CustomOpDef"]:
    """Make an operator ``disentangled_mil::name`` of a function that changes none of its arguments.

    Arguments may be sequences, but not optional ones. PyTorch 2.6 knows ``Sequence`` and ``list`` by their names in
    ``typing`` only, so the function's annotations are changed to these.

    Args:
        name: name of the operator.
        over_batches: rule for ``vmap``. By default, the operator is called once per element.

    Returns:
        A decorator that registers a function.
    """

    def register(function: Callable[..., Any]) -> "CustomOpDef":
        for parameter, hint in typing.get_type_hints(function).items():
            if known := _IN_TYPING.get(typing.get_origin(hint)):
                function.__annotations__[parameter] = known[typing.get_args(hint)]
        registered = torch.library.custom_op(f"disentangled_mil::{name}", function, mutates_args=())
        register_batched(registered, over_batches or _call_each(registered))
        return registered

    return register


def with_gradient(
    name: str,
    takes: type[Inputs],
    returns: type[Outputs],
    *,
    empty: Callable[[Inputs], Outputs],
    forward: Callable[[Inputs], Outputs],
    backward: Callable[[Inputs, Outputs, Outputs, Inputs], Inputs],
    saved: Sequence[str] = (),
    caller: str,
    no_second: str,
) -> Callable[[Inputs], Outputs]:
    """Register ``disentangled_mil::name`` and its gradient ``disentangled_mil::name_backward``.

    Both run without autocast. Forward-mode derivatives and gradients of gradients raise NotImplementedError.

    Args:
        name: name of the operator.
        takes: type of the named value that the operator takes, which has at least one tensor.
        returns: type of the named value that it returns, whose fields are tensors.
        empty: function that allocates the outputs, with the shapes and strides that ``forward`` returns.
        forward: function that computes the outputs.
        backward: function of four values: the inputs, the saved outputs, the gradients of the outputs (None where none
            arrives), and the inputs with a bool in place of every tensor. The bool says whether its gradient is
            wanted. The function returns the inputs with the gradient in place of every tensor. A gradient that is not
            wanted is ignored and may be None.
            No gradient may share memory with another one or with an argument.
        saved: names of the outputs that ``backward`` reads; it gets None in place of the others.
        caller: public function that the error in forward mode names.
        no_second: message of the error about a gradient of a gradient.

    Returns:
        The operator as a function of its named value.
    """
    arguments, fields = ", ".join(schema(takes)), list(typing.get_type_hints(returns))
    results = "".join(f", Tensor {field}" for field in saved)
    arriving = "".join(f", Tensor? into_{field}" for field in fields)

    def run(*flat: Any) -> Any:
        with torch.autocast(_device(flat), enabled=False):
            return _unpacked(forward(build(takes, flat)))

    def run_backward(*flat: Any) -> list[Tensor]:
        *given, wanted = flat
        given, into = given[: -len(fields)], given[-len(fields) :]
        own, kept = given[: len(given) - len(saved)], given[len(given) - len(saved) :]
        tensors, rest = split(own)
        outputs = dict.fromkeys(fields) | dict(zip(saved, kept, strict=True))
        with torch.autocast(_device(own), enabled=False):
            gradients = backward(
                build(takes, own), returns(**outputs), returns(*into), build(takes, join(rest, wanted))
            )
        return [
            _laid_out_like(tensor, gradient)
            for tensor, gradient, is_wanted in zip(tensors, per_tensor(rest, flatten(gradients)), wanted, strict=True)
            if is_wanted
        ]

    registered = torch.library.custom_op(
        f"disentangled_mil::{name}",
        run,
        mutates_args=(),
        schema=f"({arguments}) -> ({', '.join('Tensor' for _ in fields)})",
    )
    registered_backward = torch.library.custom_op(
        f"disentangled_mil::{name}_backward",
        run_backward,
        mutates_args=(),
        schema=f"({arguments}{results}{arriving}, bool[] wanted) -> Tensor[]",
    )

    register_batched(registered, _call_each(registered))
    register_batched(registered_backward, _call_each(registered_backward))

    @registered.register_fake
    def shapes(*flat: Any) -> Any:
        return _unpacked(empty(build(takes, flat)))

    @registered_backward.register_fake
    def shapes_backward(*flat: Any) -> list[Tensor]:
        *given, wanted = flat
        tensors, _ = split(given[: -len(saved) - len(fields)])
        return [torch.empty_like(tensor) for tensor, is_wanted in zip(tensors, wanted, strict=True) if is_wanted]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, ctx.rest = split(inputs)
        outputs = returns(*(output if isinstance(output, tuple) else [output]))
        ctx.save_for_backward(*tensors, *(getattr(outputs, field) for field in saved))
        ctx.set_materialize_grads(False)

    def pass_back(ctx: Any, *into: Tensor | None) -> tuple[Any, ...]:
        count = len(ctx.saved_tensors) - len(saved)
        tensors, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wanted = list(per_tensor(ctx.rest, ctx.needs_input_grad))
        gradients: list[Tensor | None] = [None] * len(wanted)
        if any(part is not None for part in into):
            computed = iter(registered_backward(*join(ctx.rest, tensors), *kept, *into, wanted))
            gradients = [next(computed) if is_wanted else None for is_wanted in wanted]
        return tuple(
            part if holds_tensors(place) else None
            for place, part in zip(ctx.rest, join(ctx.rest, gradients), strict=True)
        )

    registered.register_autograd(pass_back, setup_context=remember)
    refuse_gradient(registered_backward, no_second)

    def call(value: Inputs) -> Outputs:
        flat = flatten(value)
        refuse_forward_mode(caller, flat)
        outputs = registered(*flat)
        return returns(*outputs) if len(fields) > 1 else returns(outputs)

    return call


def zeros_like(value: Named) -> Named:
    """A named value with zeros in place of its tensors, such as a backward pass adds up gradients in."""
    tensors, rest = split(flatten(value))
    zeros = [torch.zeros_like(tensor) for tensor in tensors]
    return build(type(value), join(rest, zeros))


def refuse_gradient(registered: "CustomOpDef", reason: str) -> None:
    """Make an operator raise NotImplementedError when its gradient is taken."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise NotImplementedError(reason)

    registered.register_autograd(refuse)


def refuse_forward_mode(name: str, arguments: Iterable[Any]) -> None:
    """Refuse tensors with tangents (``torch.func.jvp``), which an operator would drop without a word."""
    if torch.compiler.is_compiling():
        return
    if any(has_tangent(tensor) for tensor in split(arguments)[0]):
        raise NotImplementedError(f"{name} has no derivative in forward mode: take it in reverse mode")


def _call_each(registered: "CustomOpDef") -> BatchingRule:
    """The rule by which ``vmap`` calls an operator once per element, which also serves gradients that are batched."""

    def each(size: int, dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
        tensors, rest = split(arguments)
        places = list(per_tensor(rest, dims))
        results = []
        for element in range(size):
            own = [
                part if dim is None else part.select(dim, element) for part, dim in zip(tensors, places, strict=True)
            ]
            results.append(registered(*join(rest, own)))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        kind = type(results[0])
        stacked = kind(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, kind(0 for _ in stacked)

    return each


def _unpacked(outputs: tuple[Any, ...]) -> Any:
    """Outputs as PyTorch's operators return them: a single one is no tuple."""
    return outputs if len(outputs) > 1 else outputs[0]


def _laid_out_like(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the type of its tensor, with the strides that ``empty_like`` would give it."""
    # The fake promises these strides, so the gradient must have them.
    expected = torch.empty_like(tensor, device="meta")
    if gradient.dtype == expected.dtype and gradient.stride() == expected.stride():
        return gradient
    return torch.empty_like(tensor).copy_(gradient)


def _device(flat: Iterable[Any]) -> str:
    device_type: str = split(flat)[0][0].device.type
    return device_type
