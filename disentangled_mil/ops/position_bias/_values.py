"""A network at many displacements, without hidden layers that are kept for its gradient.

Forward and backward go through the displacements a part at a time, and the backward pass computes the hidden layers of
a part again. Memory is that of one part; time is a third more than with the hidden layers kept.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..._operators import with_gradient, zeros_like
from ..._precision import wide_dtype
from ._network import HiddenLayers, MLPBias, pairs_at_once


def network_biases(network: MLPBias, displacement: Tensor) -> Tensor:
    """The biases of a network at displacements [..., 2]: ``network(displacement)`` in bounded memory.

    Args:
        network: network of the bias.
        displacement: displacements of queries from keys.

    Shape:
        ``displacement`` [..., 2].

    Returns:
        The biases [..., I], in float64 where the weights are, else in float32.

    Raises:
        NotImplementedError: in forward mode, or for a gradient of a gradient.
    """
    wide = wide_dtype(network.w1)
    parts = MLPBias(*(part.to(wide) for part in network))
    biases = _network_biases(_Arguments(parts, displacement.to(wide).reshape(-1, 2))).biases
    return biases.view(*displacement.shape[:-1], network.w3.shape[0])


class _Arguments(NamedTuple):
    network: MLPBias
    displacement: Tensor  # [M, 2]


class _Results(NamedTuple):
    biases: Tensor  # [M, I]


def _empty(given: _Arguments) -> _Results:
    return _Results(given.displacement.new_empty(given.displacement.shape[0], given.network.w3.shape[0]))


def _forward(given: _Arguments) -> _Results:
    results = _empty(given)
    for part in _parts(given):
        results.biases[part] = HiddenLayers(given.network, given.displacement[part]).values()
    return results


def _backward(given: _Arguments, _: _Results, arriving: _Results, wanted: _Arguments) -> _Arguments:
    gradient = zeros_like(given)
    for part in _parts(given):
        layers = HiddenLayers(given.network, given.displacement[part])
        want_displacement = bool(wanted.displacement)
        grad_part = layers.backward(arriving.biases[part], gradient.network, want_displacement=want_displacement)
        if grad_part is not None:
            gradient.displacement[part] = grad_part
    return gradient


def _parts(given: _Arguments) -> Iterator[slice]:
    step = pairs_at_once(given.displacement.device)
    return (slice(start, start + step) for start in range(0, len(given.displacement), step))


_network_biases = with_gradient(
    "network_biases",
    _Arguments,
    _Results,
    empty=_empty,
    forward=_forward,
    backward=_backward,
    caller="a table of a network",
    no_second="a table of a network has no gradient of a gradient",
)
