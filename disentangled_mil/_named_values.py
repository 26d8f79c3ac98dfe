"""Named values as the flat rows of arguments that PyTorch's operators take.

A named value is a ``NamedTuple`` whose fields are tensors, optional tensors, lists of tensors, floats, bools, strings,
or other named values. Its flat row has all fields in order, those of inner values in their place. A row is stored for
the backward pass as its tensors, and the rest with a placeholder for each tensor.
"""

import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor

Named = TypeVar("Named", bound=tuple[Any, ...])

# PyTorch's names of the types that a field may have.
_IN_SCHEMA: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    float: "float",
    bool: "bool",
    str: "str",
}
_TENSOR = object()  # the placeholder of a tensor


def _is_named(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "_fields")


def schema(kind: type, prefix: str = "") -> Iterator[str]:
    """The arguments of a named value in PyTorch's notation; names of nested values are joined."""
    for name, hint in typing.get_type_hints(kind).items():
        if _is_named(hint):
            yield from schema(hint, f"{prefix}{name}_")
        else:
            yield f"{_IN_SCHEMA[hint]} {prefix}{name}"


def flatten(value: tuple[Any, ...]) -> list[Any]:
    """The fields of a named value in a row."""
    flat = []
    for part in value:
        if isinstance(part, tuple):
            flat.extend(flatten(part))
        else:
            flat.append(part)
    return flat


def build(kind: type[Named], flat: Iterable[Any]) -> Named:
    """The opposite of :func:`flatten`."""
    parts = iter(flat)

    def make(of: type[Any]) -> Any:
        return of(*(make(hint) if _is_named(hint) else next(parts) for hint in typing.get_type_hints(of).values()))

    made: Named = make(kind)
    return made


def split(flat: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """All tensors of a row of arguments, and the row with a placeholder for each of them."""
    tensors, rest = list[Any](), list[Any]()
    for part in flat:
        if isinstance(part, (list, tuple)):
            tensors.extend(part)
            rest.append([_TENSOR] * len(part))
        elif isinstance(part, Tensor):
            tensors.append(part)
            rest.append(_TENSOR)
        else:
            rest.append(part)
    return tensors, rest


def join(rest: Iterable[Any], tensors: Iterable[Any]) -> list[Any]:
    """The opposite of :func:`split`; in place of tensors there may be anything that belongs to each of them."""
    source = iter(tensors)
    return [
        next(source) if part is _TENSOR else [next(source) for _ in part] if isinstance(part, list) else part
        for part in rest
    ]


def holds_tensors(place: Any) -> bool:
    """Whether an entry of a row without its tensors stands for a tensor or for a list of them."""
    return place is _TENSOR or isinstance(place, list)


def per_tensor(rest: Iterable[Any], entries: Iterable[Any]) -> Iterator[Any]:
    """One entry for each tensor of a row.

    Args:
        rest: row of arguments without its tensors.
        entries: one entry for each argument; for a list of tensors a list, or one entry for all of them.

    Yields:
        The entries that belong to tensors.
    """
    for place, entry in zip(rest, entries, strict=True):
        if isinstance(place, list):
            yield from entry if isinstance(entry, (list, tuple)) else [entry] * len(place)
        elif holds_tensors(place):
            yield entry
