"""Tensors of nested values."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def leaves(value: Any) -> list[Tensor]:
    """All tensors of a value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
