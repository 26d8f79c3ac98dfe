r"""A depthwise convolution whose windows may lie anywhere on a map.

*What is computed.* For every window j of S x S cells, and for every channel c,
:math:`\mathrm{out}_{jc} = \sum_{yx} \mathrm{cells}_{w(j, y, x), c}\, \mathrm{kernel}_{yxc}`. A cell outside of the map
counts as zero.

*How it is tiled.* Windows are read one kernel row at a time, so a row of every window is held, [B, G, J, S, C].

*What its backward is.* The gradient of a cell is the sum of gradient times kernel over the windows that contain it, and
the gradient of the kernel is the sum of gradient times cell. The backward pass reads the cells again.

*What it costs.* O(B G J S^2 C) operations, and the memory of one kernel row of the windows.
"""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_floating, check_shape
from .._operators import operator, refuse_forward_mode, refuse_gradient
from .._precision import wide_dtype


def depthwise_windows(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    r"""Sum of cells times kernel over each window, channel by channel.

    .. math:: \mathrm{out}_{jc} = \sum_{yx} \mathrm{cells}_{w(j, y, x), c}\, \mathrm{kernel}_{yxc}

    Half precisions are summed in float32.

    Args:
        cells: flattened maps of G groups of channels.
        window: flat index of each cell of a window. M stands for a cell outside of the map, which counts as zero.
        kernel: one number per place and channel, shared by the groups.

    Shape:
        cells [B, G, M, C], window [B, J, S, S], kernel [S, S, C].

    Returns:
        The sums [B, G, J, C], in the type of ``cells``.

    Raises:
        TypeError: ``cells`` is not floating-point, or ``window`` is not int64.
        ValueError: shapes disagree.
        NotImplementedError: a derivative in forward mode or a second derivative is taken.

    Source:
        The convolution of DAT's offset network (Xia et al., CVPR 2022).

    Differs from the source:
        Windows need not lie on a lattice.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops.windows import depthwise_windows
        >>> cells, window = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[0, 1], [1, 2]]]])
        >>> depthwise_windows(cells, window, torch.ones(2, 2, 1))
        tensor([[[[5.]]]])
    """
    sizes = check_shape("cells", cells, "B G M C")
    check_floating("cells", cells)
    sizes |= check_shape("window", window, "B J S S", sizes)
    for name, tensor, spec in (("window", window, "B J S S"), ("kernel", kernel, "S S C")):
        check_shape(name, tensor, spec, sizes)
    if window.dtype != torch.int64:
        raise TypeError(f"window must hold torch.int64 indices, got {window.dtype}")
    refuse_forward_mode("depthwise_windows", (cells, kernel))
    summed: Tensor = _depthwise_windows(cells, window, kernel.to(cells.dtype))
    return summed


@operator("depthwise_windows")
def _depthwise_windows(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    wide = wide_dtype(cells)
    summed = cells.new_zeros(*cells.shape[:2], window.shape[1], cells.shape[3], dtype=wide)
    flat, shape = cells.flatten(0, 2), (*cells.shape[:2], *window.shape[1:3], cells.shape[3])
    for row, weight in enumerate(kernel.to(wide)):
        index, inside = _places(cells, window[:, :, row], wide)
        summed += _read(flat, index, shape, wide).mul_(inside * weight).sum(3)
    return summed.to(cells.dtype)


@_depthwise_windows.register_fake
def _empty(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    return cells.new_empty(*cells.shape[:2], window.shape[1], cells.shape[3])


@operator("depthwise_windows_backward")
def _backward(gradient: Tensor, cells: Tensor, window: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    batch, groups, count, channels = cells.shape
    wide = wide_dtype(cells)
    arriving = gradient.to(wide)[:, :, :, None]  # [B, G, J, 1, C]
    into_cells = cells.new_zeros(batch * groups * count, channels, dtype=wide)
    into_kernel = torch.zeros_like(kernel, dtype=wide)
    flat, shape = cells.flatten(0, 2), (*cells.shape[:2], *window.shape[1:3], cells.shape[3])
    for row, weight in enumerate(kernel.to(wide)):
        index, inside = _places(cells, window[:, :, row], wide)
        read = _read(flat, index, shape, wide)
        into_kernel[row] = (read.mul_(arriving).sum(1, keepdim=True) * inside).sum((0, 1, 2))
        change = torch.mul(arriving, inside * weight, out=read).view(-1, channels)
        into_cells.scatter_add_(0, index[:, None].expand_as(change), change)
    return into_cells.view_as(cells).to(cells.dtype), into_kernel.to(kernel.dtype)


@_backward.register_fake
def _like_inputs(gradient: Tensor, cells: Tensor, window: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    return cells.new_empty(cells.shape), torch.empty_like(kernel)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pass_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
    into_cells, into_kernel = _backward(gradient, *ctx.saved_tensors)
    return into_cells, None, into_kernel


_depthwise_windows.register_autograd(_pass_back, setup_context=_remember)


refuse_gradient(_backward, "depthwise_windows has no gradient of a gradient")


def _read(flat: Tensor, index: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The cells of a kernel row [B, G, J, S, C], given their rows in the flattened cells."""
    return torch.index_select(flat, 0, index).view(shape).to(dtype)


def _places(cells: Tensor, window: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of the flattened cells that a kernel row reads [B G J S], and 1 inside of the map [B, 1, J, S, 1]."""
    batch, groups, count, _ = cells.shape
    inside = window < count
    first = torch.arange(0, batch * groups * count, count, device=window.device).view(batch, groups, 1, 1)
    return (window.where(inside, 0)[:, None] + first).flatten(), inside[:, None, ..., None].to(dtype)
