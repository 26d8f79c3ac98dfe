"""Biases of a network at many displacements, with no hidden layer kept for the gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._operators import operator, refuse_forward_mode, refuse_gradient
from ..._precision import wide_dtype
from ._bias_tiles import NetworkBias, through_log
from ._biases import MLPBias
from ._log_spacing import spaced


def network_biases(network: MLPBias, displacement: Tensor) -> Tensor:
    """The biases of a network at displacements [..., 2]: [..., I], in float64 where its weights are, else in float32.

    The same as calling the network, but for precision and memory. It cannot be differentiated twice, nor in forward
    mode.
    """
    refuse_forward_mode("a table of a network", (*network, displacement))
    wide = wide_dtype(network.w1)
    parts = [part.to(wide) for part in network]
    biases: Tensor = _network_biases(parts, displacement.to(wide).reshape(-1, 2))
    return biases.view(*displacement.shape[:-1], network.w3.shape[0])


@operator("network_biases")
def _network_biases(parts: Sequence[Tensor], displacement: Tensor) -> Tensor:
    with torch.autocast(displacement.device.type, enabled=False):
        return NetworkBias(parts).rows(spaced(displacement)).values()


@_network_biases.register_fake
def _empty(parts: Sequence[Tensor], displacement: Tensor) -> Tensor:
    return displacement.new_empty(displacement.shape[0], parts[4].shape[0])


@operator("network_biases_backward")
def _backward(gradient: Tensor, parts: Sequence[Tensor], displacement: Tensor, want_displacement: bool) -> list[Tensor]:
    with torch.autocast(displacement.device.type, enabled=False):
        network = NetworkBias(parts)
        moved = network.rows(spaced(displacement)).backward(gradient, want_displacement)
        into = torch.zeros_like(displacement) if moved is None else through_log(moved, displacement)
    return [*network.gradient, into]


@_backward.register_fake
def _like_inputs(
    gradient: Tensor, parts: Sequence[Tensor], displacement: Tensor, want_displacement: bool
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (*parts, displacement)]


def _remember(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor], output: Tensor) -> None:
    parts, displacement = inputs
    ctx.save_for_backward(*parts, displacement)


def _pass_back(ctx: Any, gradient: Tensor) -> tuple[list[Tensor], Tensor | None]:
    *parts, displacement = ctx.saved_tensors
    want_displacement = ctx.needs_input_grad[1]
    *into_parts, into_displacement = _backward(gradient, parts, displacement, want_displacement)
    return into_parts, into_displacement if want_displacement else None


_network_biases.register_autograd(_pass_back, setup_context=_remember)


refuse_gradient(_backward, "a table of a network has no gradient of a gradient")
