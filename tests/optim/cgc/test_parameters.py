"""Parameters that do not correspond, or that the optimizer does not have."""

import pytest
import torch

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
