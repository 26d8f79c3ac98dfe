"""Parameters that do not correspond, or that the optimizer does not have."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from disentangled_mil.optim import CGCOptimizer
from tests.support.cgc import parameter


def test_wrong_constructor_arguments_are_named() -> None:
    a, b, c, wide = parameter(0.0), parameter(0.0), parameter(0.0), parameter(0.0, 1.0)
    index = torch.tensor([1])
    sgd = torch.optim.SGD([a, b, wide])
    cases: list[tuple[object, type[Exception], str]] = [
        (
            {"tumor": [a]},
            ValueError,
            r"subspace_parameters must name at least two subspaces, got \['tumor'\]",
        ),
        ({"tumor": [], "tme": []}, ValueError, r"\['tumor'\] must have at least one parameter, got none"),
        (
            {"tumor": [a, wide], "tme": [b]},
            ValueError,
            r"\['tme'\] must have the number of parameters of .tumor., 2, got 1",
        ),
        (
            {"tumor": [a], "tme": [wide]},
            ValueError,
            r"\['tme'\]\[0\] must have the shape .*, \[1\], got \[2\]",
        ),
        ({"tumor": [a], "tme": [c]}, ValueError, r"\['tme'\]\[0\] must be a parameter of the optimizer"),
        ({"tumor": [a], "tme": [a]}, ValueError, r"\['tme'\]\[0\] must occur once, got .*\['tumor'\]\[0\]"),
        ({"tumor": [a], "tme": ["b"]}, TypeError, r"\['tme'\]\[0\] must be a parameter, got str"),
        ({"tumor": [a], "tme": [index]}, TypeError, r"\['tme'\]\[0\] must be a floating-point tensor, got"),
        ([[a], [b]], TypeError, r"subspace_parameters must be a mapping from names, got list"),
        ({"tumor": [a], "tme": None}, TypeError, r"\['tme'\] must be several parameters, got NoneType"),
    ]
    for blocks, error, message in cases:
        with pytest.raises(error, match=message):
            CGCOptimizer(sgd, blocks)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        CGCOptimizer([a, b], {"tumor": [a], "tme": [b]})
    with pytest.raises(ValueError, match="granularity must be one of 'row', 'tensor', 'subspace', got 'class'"):
        CGCOptimizer(sgd, {"tumor": [a], "tme": [b]}, granularity="class")


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_parameters_sharded_over_processes_are_refused() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        a, b = (nn.Parameter(distribute_tensor(torch.zeros(2, 2), mesh, [Shard(0)])) for _ in range(2))
        message = (
            r"subspace_parameters\['tumor'\]\[0\] must be whole in every process, got a DTensor "
            r"\(leave it out of fully_shard by ignored_params, or train with DistributedDataParallel\)"
        )
        with pytest.raises(TypeError, match=message):
            CGCOptimizer(torch.optim.SGD([a, b]), {"tumor": [a], "tme": [b]})
    finally:
        dist.destroy_process_group()
