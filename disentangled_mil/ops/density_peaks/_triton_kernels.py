# mypy: ignore-errors
"""Kernels of density peaks: the smallest squared distances of every token.

Both kernels share this layout:

* Tokens are transposed, [channels, stride]. Zeros pad them to whole tiles and to a multiple of ``CHANNELS``.
* A program holds ``ROWS`` tokens and goes through the ``span`` columns of one segment. Every segment has results of its
  own.
* The channels of a pair are always added in the same order, so equal tokens have equal distances.
"""

import triton
import triton.language as tl


@triton.jit
def nearest(
    tokens,
    out,
    size,
    stride,
    channels,
    span,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The smallest squared distances of each row within a segment, in no order [segments, size, SLOTS]."""
    row, slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, SLOTS)
    # Triton needs a power of two. The slots beyond COUNT hold -inf, so they are never the largest.
    best = tl.full([ROWS, SLOTS], float("inf"), tokens.dtype.element_ty)
    best = tl.where(slot[None, :] < COUNT, best, -float("inf"))
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, size), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        squared = _squared(tokens, row, column, stride, channels, CHANNELS)
        squared = tl.where(column[None, :] < size, squared, float("inf"))
        least, worst = tl.min(squared, 1), tl.max(best, 1)
        while tl.max((least < worst).to(tl.int32), 0) > 0:
            replaced = (slot[None, :] == tl.argmax(best, 1)[:, None]) & (least < worst)[:, None]
            best = tl.where(replaced, least[:, None], best)
            taken = tl.argmin(squared, 1)[:, None] == tl.arange(0, COLUMNS)[None, :]
            squared = tl.where(taken, float("inf"), squared)
            least, worst = tl.min(squared, 1), tl.max(best, 1)
    index = (tl.program_id(1) * size + row).to(tl.int64)[:, None] * SLOTS + slot[None, :]
    tl.store(out + index, best, (row < size)[:, None])


@triton.jit
def nearest_earlier(
    tokens,
    gap,
    farthest,
    size,
    stride,
    channels,
    span,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The smallest squared distance of each row to the columns before it in a segment, and the largest one.

    Both results are [segments, size]. Later columns are skipped, because each pair is seen from its later token.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # rows with most columns start first
    row = block * ROWS + tl.arange(0, ROWS)
    least = tl.full([ROWS], float("inf"), tokens.dtype.element_ty)
    most = tl.full([ROWS], 0.0, tokens.dtype.element_ty)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, tl.minimum(size, (block + 1) * ROWS)), COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        squared = _squared(tokens, row, column, stride, channels, CHANNELS)
        earlier = column[None, :] < row[:, None]
        least = tl.minimum(least, tl.min(tl.where(earlier, squared, float("inf")), 1))
        most = tl.maximum(most, tl.max(tl.where(earlier, squared, 0.0), 1))
    index = tl.program_id(1) * size + row
    tl.store(gap + index, least, row < size)
    tl.store(farthest + index, most, row < size)


@triton.jit
def _squared(tokens, row, column, stride, channels, CHANNELS: tl.constexpr):
    """Squared distances [ROWS, COLUMNS]."""
    total = tl.full([row.shape[0], column.shape[0]], 0.0, tokens.dtype.element_ty)
    for _ in range(0, channels, CHANNELS):
        for _ in tl.static_range(CHANNELS):
            difference = tl.load(tokens + row)[:, None] - tl.load(tokens + column)[None, :]
            total += difference * difference
            tokens += stride
    return total
