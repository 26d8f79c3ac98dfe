"""Tensors of nested values."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def leaves(value: Any) -> list[Tensor]:
    """All tensors of a value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def results(value: object) -> list[Tensor]:
    """All floating-point results; lazy attention by its mass."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in results(part)]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in results(part)]
    return [value.mass()] if hasattr(value, "mass") else []
