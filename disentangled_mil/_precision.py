"""Precisions: half precision is for storage, and sums are computed in at least float32."""

import torch
from torch import Tensor, nn


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """The type in which sums over some tensors are computed.

    Returns:
        float32, or float64 if one of the tensors has it.

    Example:
        >>> wide_dtype(torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.bfloat16))
        torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def widened(tensor: Tensor) -> Tensor:
    """A tensor in at least float32."""
    return tensor.to(wide_dtype(tensor))


def weight_dtype(network: nn.Module) -> torch.dtype:
    """The type of a network's weights, which need be no parameters: replicas and parametrizations have tensors."""
    return next(layer.weight.dtype for layer in network.modules() if isinstance(layer, nn.Linear))
