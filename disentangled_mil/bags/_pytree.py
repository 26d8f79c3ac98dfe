"""Values that torch.export and tree_map can take apart."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .._torch_private import attribute_key, register_pytree_node


def register_pytree(kind: type, parts: Sequence[str], constants: Sequence[str] = ()) -> None:
    """Let torch.export and tree_map take values apart.

    Args:
        kind: class of the values.
        parts: names of the attributes that are tensors, or values with tensors.
        constants: names of the other attributes, which become part of an exported program.
    """

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in parts], tuple(getattr(value, name) for name in constants)

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        values, fixed = flatten(value)
        return [(attribute_key(name), part) for name, part in zip(parts, values, strict=True)], fixed

    def unflatten(values: Iterable[Any], fixed: Iterable[Any]) -> Any:
        # The checks are left out, because the parts of a tree may be anything.
        value: Any = object.__new__(kind)
        vars(value).update(zip((*parts, *constants), (*values, *fixed), strict=True))
        return value

    register_pytree_node(
        kind,
        flatten,
        unflatten,
        serialized_type_name=f"disentangled_mil.{kind.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=_as_tuples,
        flatten_with_keys_fn=flatten_with_keys,
    )
    # An exported program is saved with the bags that it was made for.
    torch.serialization.add_safe_globals([kind])


def _as_tuples(value: Any) -> Any:
    """Make tuples of lists, which JSON made of tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
