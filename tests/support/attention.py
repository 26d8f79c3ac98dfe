"""What tests of the attention operators share: drawn arguments, gradients, and sizes of tiles."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled_mil.ops import BiasTable, MLPBias

Arguments = dict[str, Any]


def draw(
    seed: int,
    *,
    kind: str = "none",
    batch: int = 2,
    groups: int = 2,
    per_group: int = 2,
    queries: int = 5,
    keys: int = 4,
    width: int = 3,
    padded: float = 0.0,
    dropped: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Arguments:
    """Draw arguments of ``biased_attention``.

    A share ``padded`` of the queries is padding that holds NaN. A share ``dropped`` of the keys is taken out.
    """
    source = torch.Generator().manual_seed(seed)
    heads = groups * per_group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=source)

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_()

    mask = torch.rand(batch, queries, generator=source) >= padded
    closed = torch.rand(batch, groups, keys, generator=source) < dropped
    arguments = {
        "query": leaf(normal(batch, heads, queries, width).masked_fill(~mask[:, None, :, None], torch.nan)),
        "key": leaf(normal(batch, heads, keys, width)),
        "value": leaf(normal(batch, heads, keys, width)),
        "query_position": leaf(normal(batch, queries, 2).tanh().masked_fill(~mask[..., None], torch.nan)),
        "key_position": leaf(normal(batch, groups, keys, 2).tanh()),
        "key_logit": leaf(normal(batch, groups, keys).masked_fill(closed, -torch.inf)),
        "query_mask": mask,
    }
    if kind == "network":
        shapes = [(5, 2), (5,), (5, 5), (5,), (per_group, 5), (per_group,)]
        arguments["bias"] = MLPBias(*(leaf(normal(*shape)) for shape in shapes))
    if kind == "table":  # some displacements lie outside
        arguments["bias"] = BiasTable(leaf(normal(per_group, 4, 4)), 1.25)
    return arguments


def leaves(arguments: Arguments) -> list[Tensor]:
    """All tensors among the arguments that want a gradient."""
    parts = [part for entry in arguments.values() for part in (entry if isinstance(entry, tuple) else [entry])]
    return [part for part in parts if isinstance(part, Tensor) and part.requires_grad]


def slopes(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of outputs that are weighted at random; zeros where there is no path."""
    source = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, dtype=torch.float64, generator=source).to(out.dtype) for out in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True))


def without_value(arguments: Arguments) -> Arguments:
    """Arguments of ``AttentionScores`` from those of ``biased_attention``."""
    return {name: entry for name, entry in arguments.items() if name != "value"}


@contextmanager
def tiles(entries: int, *, piecewise: bool = False) -> Iterator[None]:
    """Set the entries in a tile; networks are read from piecewise tables, however small the work, or never."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {
            "attention._bag.ENTRIES": entries,
            "attention._bag.LEAST_QUERIES": 1,
            "attention._bag.LEAST_QUERIES_OF_BIAS": 1,
            "position_bias._network.MOST_PAIRS": entries,
            "position_bias._piecewise.LARGEST_SHARE": math.inf if piecewise else 0,
        }.items():
            patch.setattr(f"disentangled_mil.ops.{name}", size)
        yield
