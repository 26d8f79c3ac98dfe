# mypy: ignore-errors
"""Tiles of queries and keys that the kernels of biased attention read and write, and tests for skipping them."""

import triton
import triton.language as tl


@triton.jit
def head_of(bag_head, HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """The bag, the group among the groups of all bags, and the head among the heads of the group."""
    bag, head = bag_head // HEADS, bag_head % HEADS
    inner: tl.constexpr = HEADS // GROUPS
    return bag, bag * GROUPS + head // inner, head % inner


@triton.jit
def tile_of_keys(keys, chunks, KEYS: tl.constexpr):
    """The chunk of queries, the first key, and the bag and head of a program over keys."""
    tiles = tl.cdiv(keys, KEYS)
    tile = tl.program_id(0) // chunks
    return tl.program_id(0) % chunks, tile % tiles * KEYS, (tile // tiles).to(tl.int64)


@triton.jit
def end_of(alive, end):
    """The end of a loop, or 0 if no flag is set, so that the loop is skipped."""
    return tl.where(is_any(alive), end, 0)


@triton.jit
def is_any(flags):
    """Whether any flag is true."""
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit
def load_rows(matrix, base, row, real, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [..., WIDTH] of a matrix with ``DIM`` columns, from row ``base`` on; zeros for those that are not real."""
    return load_entries(matrix, base, row, real, tl.arange(0, WIDTH), DIM)


@triton.jit
def store_rows(matrix, base, row, real, entries, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The opposite of load_rows."""
    store_entries(matrix, base, row, real, tl.arange(0, WIDTH), entries, DIM)


@triton.jit
def load_entries(matrix, base, row, real, column, columns):
    """Entries of a matrix from row ``base`` on; zeros beyond its columns and where a row is not real."""
    inside = real[:, None] & (column < columns)[None, :]
    return tl.load(matrix + ((base + row)[:, None] * columns + column[None, :]), inside, 0.0)


@triton.jit
def store_entries(matrix, base, row, real, column, entries, columns):
    """The opposite of load_entries."""
    inside = real[:, None] & (column < columns)[None, :]
    tl.store(matrix + ((base + row)[:, None] * columns + column[None, :]), entries, inside)


@triton.jit
def load_points(position, base, row, real):
    """The coordinates x and y of positions."""
    address = position + 2 * (base + row)
    return tl.load(address, real, 0.0), tl.load(address + 1, real, 0.0)


@triton.jit
def column_where(tile, here):
    """The column of a tile that a mask of columns selects."""
    return tl.sum(tl.where(here[None, :], tile, 0.0), 1)


@triton.jit
def dropout_factors(seed, row, start, keys, dropout, keep_scale, KEYS: tl.constexpr):
    """Factors of the weights under dropout [QUERIES, KEYS]. Four keys share a draw, whatever the tiles are."""
    four = start // 4 + tl.arange(0, KEYS // 4)
    a, b, c, d = tl.rand4x(tl.load(seed), row[:, None] * tl.cdiv(keys, 4) + four[None, :])
    drawn = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), [row.shape[0], KEYS])
    return tl.where(drawn >= dropout, keep_scale, 0.0)
