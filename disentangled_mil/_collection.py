"""Base classes of immutable tensor containers that have ``to`` and ``pin_memory`` and are pytree nodes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ._checks import check_flag, check_type
from ._torch_private import attribute_key, register_pytree_node

Values = TypeVar("Values", bound="TensorCollection")
Rows = TypeVar("Rows", bound="BatchCollection")


class TensorCollection:
    """Base of immutable values whose attributes are tensors, values of this kind, named tuples of tensors, or None.

    A subclass gives the names of these attributes as ``parts``, and those of its others as ``constants``, which become
    part of an exported program.
    """

    _parts: ClassVar[Sequence[str]] = ()
    _constants: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, *, parts: Sequence[str] = (), constants: Sequence[str] = ()) -> None:
        cls._parts, cls._constants = parts, constants
        if parts:
            _register(cls)

    def to(
        self: Values,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> Values:
        """The same on another device, or with floating-point tensors of another type; also ``to(dtype)``.

        Args:
            device: device, by default that of each tensor.
            dtype: floating-point type; by default each tensor keeps its own. Integers and masks always do.
            non_blocking: flag for asynchronous copies from pinned memory.
            copy: flag that copies tensors that need no change, too.

        Returns:
            A new value; tensors that need no change are shared, unless ``copy`` is True.

        Raises:
            TypeError: ``dtype`` is no floating-point type, or an option is no bool.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None:
            check_type("dtype", dtype, torch.dtype, "a torch.dtype")
            if not dtype.is_floating_point:
                raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        check_flag("non_blocking", non_blocking)
        check_flag("copy", copy)

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(
                tensor.device if device is None else device,
                dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype,
                non_blocking=non_blocking,
                copy=copy,
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
        sizes: list[int] = []

        def counted(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        self._map(counted)
        return sum(sizes)

    def _map(self: Values, function: Callable[[Tensor], Tensor]) -> Values:
        """The same with other tensors of the same shapes, which need no new checks."""
        parts = (_mapped(getattr(self, name), function) for name in self._parts)
        return self._of(parts, (getattr(self, name) for name in self._constants))

    @classmethod
    def _of(cls: type[Values], parts: Iterable[Any], constants: Iterable[Any]) -> Values:
        """A value from its attributes, which may be anything while a tree is taken apart: nothing is checked."""
        value = object.__new__(cls)
        vars(value).update(zip((*cls._parts, *cls._constants), (*parts, *constants), strict=True))
        return value


class BatchCollection(TensorCollection):
    """A tensor collection whose tensors have one row per bag or sample, so that other containers can take rows."""

    #: The parts from which a value is made; the others are computed.
    _rows: ClassVar[Sequence[str] | None] = None

    def to_dict(self) -> dict[str, Any]:
        """The tensors by name, each with one row per bag or sample, as containers such as TensorDict take them.

        Returns:
            Tensors, and a mapping of the same kind for a nested value; what is None is left out.
        """
        given = {name: getattr(self, name) for name in self._rows or self._parts}
        return {
            name: part.to_dict() if isinstance(part, BatchCollection) else part
            for name, part in given.items()
            if part is not None
        }

    @classmethod
    def from_dict(cls: type[Rows], parts: Mapping[str, Any]) -> Rows:
        """The opposite of :meth:`to_dict`, also after rows were taken or tensors were moved.

        Args:
            parts: tensors by name.

        Returns:
            A new value, which is checked as any other.

        Raises:
            TypeError: ``parts`` is no mapping, or a value is of the wrong type.
            ValueError: a name is missing or unknown, or shapes do not fit together.
        """
        return cls(**cls._named(parts))

    @classmethod
    def _named(cls, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Parts by name, after a check that all names are known."""
        check_type("parts", parts, Mapping, "a mapping from names to tensors")
        # Not set(parts): a TensorDict goes through its rows.
        named = {str(name): part for name, part in parts.items()}
        known = cls._rows or cls._parts
        lacking = [name for name in known if name not in named and not hasattr(cls, name)]
        if lacking or not set(named) <= set(known):
            raise ValueError(f"parts must have the names {', '.join(known)}, got {', '.join(named) or 'none'}")
        return named


def _mapped(part: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A part with other tensors; what holds no tensor stays."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, TensorCollection):
        return part._map(function)
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*(_mapped(each, function) for each in part))
    return part


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
