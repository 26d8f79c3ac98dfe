"""A base class of immutable tensor containers that have ``to`` and ``pin_memory`` and are pytree nodes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .._torch_private import attribute_key, register_pytree_node

Values = TypeVar("Values", bound="TensorCollection")


class TensorCollection:
    """Base of immutable containers whose attributes are tensors, or containers of this kind.

    A subclass gives the names of these attributes as ``parts``, and those of its others as ``constants``, which become
    part of an exported program.
    """

    _parts: ClassVar[Sequence[str]]
    _constants: ClassVar[Sequence[str]]

    def __init_subclass__(cls, *, parts: Sequence[str], constants: Sequence[str] = ()) -> None:
        cls._parts, cls._constants = parts, constants
        _register(cls)

    def to(
        self: Values,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Values:
        """The same on another device, or with floating-point tensors of another type; also ``to(dtype)``.

        Args:
            device: device, by default that of each tensor.
            dtype: floating-point type; by default each tensor keeps its own. Integers and masks always do.
            non_blocking: flag for asynchronous copies from pinned memory.

        Returns:
            A new value; tensors that need no change are shared.

        Raises:
            TypeError: ``dtype`` is no floating-point type.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(
                tensor.device if device is None else device,
                dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype,
                non_blocking=non_blocking,
            )

        return self._map(moved)

    def pin_memory(self: Values) -> Values:
        """The same in page-locked memory, from which copies to a GPU can be asynchronous."""
        return self._map(Tensor.pin_memory)

    def detach(self: Values) -> Values:
        """The same without a graph of gradients."""
        return self._map(Tensor.detach)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(getattr(self, name).nbytes) for name in self._parts)

    def _map(self: Values, function: Callable[[Tensor], Tensor]) -> Values:
        """The same with other tensors of the same shapes, which need no new checks."""
        parts = (getattr(self, name) for name in self._parts)
        mapped = (part._map(function) if isinstance(part, TensorCollection) else function(part) for part in parts)
        return self._of(mapped, (getattr(self, name) for name in self._constants))

    @classmethod
    def _of(cls: type[Values], parts: Iterable[Any], constants: Iterable[Any]) -> Values:
        """A value from its attributes, without checks: a pytree may hold anything in their place."""
        value = object.__new__(cls)
        vars(value).update(zip((*cls._parts, *cls._constants), (*parts, *constants), strict=True))
        return value


def _register(kind: type[TensorCollection]) -> None:
    """Let torch.export and tree_map take values apart, and torch.load read them."""
    parts, constants = kind._parts, kind._constants

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in parts], tuple(getattr(value, name) for name in constants)

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        values, fixed = flatten(value)
        return [(attribute_key(name), part) for name, part in zip(parts, values, strict=True)], fixed

    register_pytree_node(
        kind,
        flatten,
        kind._of,
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
