"""Gradients that several processes share: sharded ones are gathered, and unreduced ones are refused."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._processes import Group, gather_rows, of_all


def whole(gradient: Tensor) -> Tensor:
    """A gradient with the parts of all processes; one that is not sharded is returned as it is."""
    full: Any = getattr(gradient, "full_tensor", None)
    return gradient if full is None else full()


def put_back(gradient: Tensor, values: Tensor) -> None:
    """Write values into a gradient, each process its own part."""
    if gradient is values:
        return
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(gradient, DTensor)
    mesh = gradient.device_mesh
    everywhere = DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)
    gradient.copy_(everywhere.redistribute(mesh, gradient.placements))


def check_reduced(
    gradients: Iterable[Sequence[Tensor]],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    group: Group | None,
) -> None:
    """Refuse gradients that differ between processes, and an optimizer whose parameters have none.

    All processes raise the same error, so that none waits for the others.

    Raises:
        RuntimeError: gradients differ, or there are none.
    """
    owned = [parameter for each in optimizer.param_groups for parameter in each["params"]]
    present = sum(parameter.grad is not None for parameter in owned)
    counts = [count for (count,) in of_all([present], device, group)]
    if not any(counts):
        raise RuntimeError(
            "parameters of the wrapped optimizer must have gradients, got none: build the optimizers after "
            "fully_shard, which replaces the parameters of a model"
        )
    flat = [gradient.to(device, torch.float64).flatten() for gradient in chain.from_iterable(gradients)]
    values = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64, device=device)
    weights = torch.arange(1, len(values) + 1, device=device).sqrt()
    marks = torch.stack([values.sum(), (values * weights).sum()])[None].nan_to_num()
    every = gather_rows(marks, [1] * len(counts), group)
    if not (every == every[:1]).all():
        raise RuntimeError(
            "gradients of subspace_parameters must be equal in all processes, got different ones: train with "
            "DistributedDataParallel, or with fully_shard without these parameters among its ignored_params"
        )
