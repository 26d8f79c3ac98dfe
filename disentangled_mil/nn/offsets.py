"""The network that moves reference points."""

import torch
from torch import Tensor, nn

from ..ops import depthwise_windows


class OffsetNetwork(nn.Module):
    """Two numbers per window of queries: depthwise convolution -> GELU -> linear without bias.

    Args:
        channels: channels of an offset group; the groups share the weights.
        kernel_size: side S of the window in cells.

    Shape:
        ``cells`` [B, G, M, channels], windows of flat indices [B, J, S, S] -> [B, G, J, 2].
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, groups=channels)
        self.pointwise = nn.Linear(channels, 2, bias=False)

    def forward(self, cells: Tensor, window: Tensor) -> Tensor:
        """Compute offsets before the tanh.

        Args:
            cells: queries by cell of the canvas.
            window: cells of each window.

        Returns:
            Two numbers per group and window.
        """
        hidden = depthwise_windows(cells, window, self.depthwise.weight.squeeze(1).movedim(0, 2))
        if self.depthwise.bias is not None:
            hidden = hidden + self.depthwise.bias
        offset: Tensor = self.pointwise(torch.nn.functional.gelu(hidden))
        return offset
