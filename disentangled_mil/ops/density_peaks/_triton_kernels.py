# mypy: ignore-errors
"""Kernels of density peaks: squared distances, summed over differences a tile at a time, and what is wanted of them.

What both share:

* Tokens come transposed, [channels, stride], padded with zeros to whole tiles and to a multiple of ``CHANNELS``.
* A program has ``ROWS`` tokens and goes through the columns of one segment, ``span`` of them; programs of later
  segments have the same rows and results of their own.
* The channels of a pair are always added up in the same order: equal tokens have equal distances.
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
    # As many slots as a power of two needs; those that nobody asked for are never the largest.
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
    place = (tl.program_id(1) * size + row).to(tl.int64)[:, None] * SLOTS + slot[None, :]
    tl.store(out + place, best, (row < size)[:, None])


@triton.jit
def nearest_earlier(
    tokens,
    gap,
    longest,
    size,
    stride,
    channels,
    span,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The smallest squared distance of each row to earlier columns of a segment, and the largest [segments, size].

    No column after the tile of the last row is looked at: as a row it has the same distances.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # long rows first
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
    place = tl.program_id(1) * size + row
    tl.store(gap + place, least, row < size)
    tl.store(longest + place, most, row < size)


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
