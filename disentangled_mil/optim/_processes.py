"""Gradients that several processes share: sharded ones are gathered, and unreduced ones are refused."""

from collections.abc import Iterable, Mapping, Sequence
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
    parameters: Mapping[str, Sequence[Tensor]],
    device: torch.device,
    group: Group | None,
) -> None:
    """Refuse gradients that differ between processes, and subspaces that have none.

    All processes raise the same error, so that none waits for the others.

    Args:
        gradients: gradients that are compared.
        parameters: parameters of every subspace.
        device: device of the numbers that processes exchange.
        group: processes; all by default.

    Raises:
        RuntimeError: gradients differ, or all of a subspace are missing in all processes.
    """
    trained = {name: [p for p in own if p.requires_grad] for name, own in parameters.items()}
    present = [int(not own or any(p.grad is not None for p in own)) for own in trained.values()]
    every_present = of_all(present, device, group)
    for name, anywhere in zip(trained, zip(*every_present, strict=True), strict=True):
        if not any(anywhere):
            raise RuntimeError(
                f"subspace_parameters[{name!r}] must have gradients, got none in any process: build the optimizers "
                "after fully_shard, which replaces the parameters of a model, or set requires_grad to False"
            )
    flat = [gradient.to(device, torch.float64).flatten() for gradient in chain.from_iterable(gradients)]
    values = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64, device=device)
    weights = torch.arange(1, len(values) + 1, device=device).sqrt()
    marks = torch.stack([values.sum(), (values * weights).sum()])[None].nan_to_num()
    every = gather_rows(marks, [1] * len(every_present), group)
    if not (every == every[:1]).all():
        raise RuntimeError(
            "gradients of subspace_parameters must be equal in all processes, got different ones: train with "
            "DistributedDataParallel, or with fully_shard without these parameters among its ignored_params"
        )
