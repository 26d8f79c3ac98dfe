"""Corresponding parameters of several subspaces."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .._checks import check_floating, check_mapping


def corresponding_parameters(
    given: Mapping[str, Iterable[Tensor]], optimizer: torch.optim.Optimizer
) -> dict[str, tuple[Tensor, ...]]:
    """The parameters of every subspace, checked to correspond and to belong to the optimizer.

    Returns:
        A tuple per subspace. Parameters of one position have the same shape.

    Raises:
        TypeError: there is no mapping, or an entry is no floating-point tensor.
        ValueError: there are fewer than two subspaces, parameters do not correspond, the optimizer lacks one, or one
            is given twice.
    """
    check_mapping("subspace_parameters", given)
    for name, several in given.items():
        if not isinstance(several, Iterable):
            raise TypeError(f"subspace_parameters[{name!r}] must be several parameters, got {type(several).__name__}")
    parameters = {name: tuple(several) for name, several in given.items()}
    if len(parameters) < 2:
        raise ValueError(f"subspace_parameters must name at least two subspaces, got {list(parameters)}")
    first, expected = next(iter(parameters.items()))
    if not expected:
        raise ValueError(f"subspace_parameters[{first!r}] must have at least one parameter, got none")
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: dict[int, str] = {}
    for name, own in parameters.items():
        if len(own) != len(expected):
            raise ValueError(
                f"subspace_parameters[{name!r}] must have the number of parameters of {first!r}, {len(expected)}, "
                f"got {len(own)}"
            )
        for index, parameter in enumerate(own):
            place = f"subspace_parameters[{name!r}][{index}]"
            _check_parameter(place, parameter)
            if parameter.shape != expected[index].shape:
                raise ValueError(
                    f"{place} must have the shape of {first!r}, {list(expected[index].shape)}, "
                    f"got {list(parameter.shape)}"
                )
            if id(parameter) not in owned:
                raise ValueError(f"{place} must be a parameter of the optimizer, got one that it does not have")
            if id(parameter) in seen:
                raise ValueError(f"{place} must occur once, got the same parameter as {seen[id(parameter)]}")
            seen[id(parameter)] = place
    return parameters


def _check_parameter(place: str, parameter: object) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{place} must be a parameter, got {type(parameter).__name__}")
    check_floating(place, parameter)
