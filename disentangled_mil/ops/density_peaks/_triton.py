"""Distances on CUDA, as sums over differences in Triton kernels, in O(N) memory.

*How it is tiled.* A program holds 64 rows and goes through the columns, 128 at a time. It keeps the smallest squared
distances of its rows. With too few blocks of rows for the device, the columns are cut into segments as well, whose
results are combined here. For :meth:`gap`, tokens are sorted by rank, so that a row needs only the columns before it.

This module imports Triton, so it is itself imported at the first call.
"""

import torch
from torch import Tensor

from .._triton_runtime import interpreted
from . import _triton_kernels as kernels

_ROWS, _COLUMNS, _CHANNELS = 64, 128, 4
_OPTIONS = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "CHANNELS": _CHANNELS, "num_warps": 4, "enable_fp_fusion": True}
_PROGRAMS = 4  # per multiprocessor; with fewer blocks of rows the columns are cut into segments


class KernelDistances:
    """Distances of the tokens [N, C] of a bag, found by kernels.

    Raises:
        ValueError: the tokens are not on a CUDA device and Triton does not interpret kernels.
    """

    def __init__(self, tokens: Tensor) -> None:
        if not (tokens.is_cuda or interpreted()):
            raise ValueError(
                f'tokens must be on a CUDA device for backend="triton", got {tokens.device}; '
                'backend="reference" and backend="streaming" take any device'
            )
        self.tokens = tokens

    def nearest(self, count: int) -> Tensor:
        """The smallest distances of every token to any token, itself included, ascending [N, count]."""
        size, slots = len(self.tokens), 1 << (count - 1).bit_length()
        tokens, segments, span = _cut(self.tokens)
        found = tokens.new_empty(segments, size, slots)
        with torch.cuda.device(tokens.get_device()):
            kernels.nearest[-(-size // _ROWS), segments](
                tokens, found, size, *tokens.shape[::-1], span, COUNT=count, SLOTS=slots, **_OPTIONS
            )
        return found[:, :, :count].transpose(0, 1).flatten(1).topk(count, largest=False).values.sqrt()

    def gap(self, rank: Tensor) -> Tensor:
        """Each token's distance [N] to the nearest of lower rank, meaning denser; for rank 0 the largest."""
        size = len(self.tokens)
        tokens, segments, span = _cut(self.tokens[rank.argsort()])
        gap, farthest = tokens.new_empty(2, segments, size)
        with torch.cuda.device(tokens.get_device()):
            kernels.nearest_earlier[-(-size // _ROWS), segments](
                tokens, gap, farthest, size, *tokens.shape[::-1], span, **_OPTIONS
            )
        return torch.where(rank == 0, farthest.max(), gap.amin(0)[rank]).sqrt()


def _cut(tokens: Tensor) -> tuple[Tensor, int, int]:
    """Tokens in the layout of the kernels, the number of segments of columns, and the length of a segment."""
    size, width = tokens.shape
    multiprocessors = torch.cuda.get_device_properties(tokens.device).multi_processor_count if tokens.is_cuda else 1
    tiles = -(-size // _COLUMNS)
    wanted = min(tiles, -(-_PROGRAMS * multiprocessors // -(-size // _ROWS)))
    span = -(-tiles // wanted) * _COLUMNS
    padded = tokens.new_zeros(-(-width // _CHANNELS) * _CHANNELS, tiles * _COLUMNS)
    padded[:width, :size] = tokens.T
    return padded, -(-size // span), span
