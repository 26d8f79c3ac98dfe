"""Products of tall matrices with small square ones.

On a CPU in float32 they are taken as convolutions of width one, for which torch has a library that is up to twice as
fast at this shape (measured) as the one with which it multiplies matrices.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias``: [M, F], [E, F], [E] -> [M, E]."""
    if not _convolves(rows):
        return F.linear(rows, weight, bias)
    out = F.conv2d(_image(rows), weight[..., None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(rows), -1)


def correlate(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``: [M, E], [M, F] -> [E, F]."""
    if not _convolves(left):
        return left.T @ right
    shape = (left.shape[1], right.shape[1], 1, 1)
    out: Tensor = conv2d_weight(_image(right), shape, _image(left))  # type: ignore[no-untyped-call]
    return out[..., 0, 0]


def _convolves(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and torch._C._has_mkldnn and rows.numel() > 0


def _image(rows: Tensor) -> Tensor:
    """Rows [M, F] as an image [1, F, M, 1], channels last."""
    return rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)
