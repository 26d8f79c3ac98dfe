r"""A depthwise convolution whose windows may lie anywhere on a map.

*What is computed.* For every window j of S x S cells, and for every channel c,
:math:`\mathrm{out}_{jc} = \sum_{yx} \mathrm{cells}_{w(j, y, x), c}\, \mathrm{kernel}_{yxc}`. A cell outside of the map
counts as zero.

*How it is tiled.* Windows are read one kernel row at a time, so a row of every window is held, [B, G, J, S, C].

*What its backward is.* The gradient of a cell is the sum of gradient times kernel over the windows that contain it, and
the gradient of the kernel is the sum of gradient times cell. The backward pass reads the cells again.

*What it costs.* O(B G J S^2 C) operations, and the memory of one kernel row of the windows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_floating, check_shape
from .._operators import with_gradient
from .._precision import wide_dtype


def depthwise_windows(cells: Tensor, window: Tensor, kernel: Tensor) -> Tensor:
    r"""Sum of cells times kernel over each window, channel by channel.

    .. math:: \mathrm{out}_{jc} = \sum_{yx} \mathrm{cells}_{w(j, y, x), c}\, \mathrm{kernel}_{yxc}

    Half precisions are summed in float32.

    Args:
        cells: flattened maps of G groups of channels.
        window: flat index of each cell of a window. M stands for a cell outside of the map, which counts as zero.
        kernel: one number per cell of a window and channel, shared by the groups.

    Shape:
        ``cells`` [B, G, M, C], ``window`` [B, J, S, S], ``kernel`` [S, S, C].

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
    return _depthwise_windows(_Arguments(cells, window, kernel.to(cells.dtype))).sums


class _Arguments(NamedTuple):
    cells: Tensor  # [B, G, M, C]
    window: Tensor  # [B, J, S, S]
    kernel: Tensor  # [S, S, C]


class _Results(NamedTuple):
    sums: Tensor  # [B, G, J, C]


def _empty(given: _Arguments) -> _Results:
    cells = given.cells
    return _Results(cells.new_empty(*cells.shape[:2], given.window.shape[1], cells.shape[3]))


def _forward(given: _Arguments) -> _Results:
    cells, window, kernel = given
    wide = wide_dtype(cells)
    sums = cells.new_zeros(*cells.shape[:2], window.shape[1], cells.shape[3], dtype=wide)
    flat, shape = cells.flatten(0, 2), (*cells.shape[:2], *window.shape[1:3], cells.shape[3])
    for row, weight in enumerate(kernel.to(wide)):
        index, inside = _rows(cells, window[:, :, row], wide)
        sums += _read(flat, index, shape, wide).mul_(inside * weight).sum(3)
    return _Results(sums.to(cells.dtype))


def _backward(given: _Arguments, _: _Results, arriving: _Results, wanted: _Arguments) -> _Arguments:
    cells, window, kernel = given
    batch, groups, count, channels = cells.shape
    wide = wide_dtype(cells)
    grad_sums = arriving.sums.to(wide)[:, :, :, None]  # [B, G, J, 1, C]
    grad_cells = cells.new_zeros(batch * groups * count, channels, dtype=wide)
    grad_kernel = torch.zeros_like(kernel, dtype=wide)
    flat, shape = cells.flatten(0, 2), (*cells.shape[:2], *window.shape[1:3], cells.shape[3])
    for row, weight in enumerate(kernel.to(wide)):
        index, inside = _rows(cells, window[:, :, row], wide)
        read = _read(flat, index, shape, wide)
        grad_kernel[row] = (read.mul_(grad_sums).sum(1, keepdim=True) * inside).sum((0, 1, 2))
        grad_read = torch.mul(grad_sums, inside * weight, out=read).view(-1, channels)
        grad_cells.scatter_add_(0, index[:, None].expand_as(grad_read), grad_read)
    return given._replace(cells=grad_cells.view_as(cells), kernel=grad_kernel)


_depthwise_windows = with_gradient(
    "depthwise_windows",
    _Arguments,
    _Results,
    empty=_empty,
    forward=_forward,
    backward=_backward,
    caller="depthwise_windows",
    no_second="depthwise_windows has no gradient of a gradient",
)


def _read(flat: Tensor, index: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The cells of a kernel row [B, G, J, S, C], given their rows in the flattened cells."""
    return torch.index_select(flat, 0, index).view(shape).to(dtype)


def _rows(cells: Tensor, window: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of the flattened cells that a kernel row reads [B G J S], and 1 inside of the map [B, 1, J, S, 1]."""
    batch, groups, count, _ = cells.shape
    inside = window < count
    first = torch.arange(0, batch * groups * count, count, device=window.device).view(batch, groups, 1, 1)
    return (window.where(inside, 0)[:, None] + first).flatten(), inside[:, None, ..., None].to(dtype)
