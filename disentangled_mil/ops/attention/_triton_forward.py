# mypy: ignore-errors
"""Kernels of the forward pass of biased attention; :mod:`._triton_kernels` states their conventions."""

import triton
import triton.language as tl

from ._triton_bias import biases_of, load_bias
from ._triton_tiles import (
    dropout_factors,
    end_of,
    head_of,
    is_any,
    load_points,
    load_rows,
    store_entries,
    store_rows,
    tile_of_keys,
)


@triton.jit
def attend(
    query,
    key,
    value,
    query_position,
    key_position,
    mask,
    logit,
    bias,
    seed,
    out,
    lse,
    queries,
    keys,
    scale,
    reach,
    dropout,
    keep_scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS_PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Output and log-sum-exp of a tile of queries, by an online softmax over tiles of keys."""
    tiles = tl.cdiv(queries, QUERIES)
    bag_head = (tl.program_id(0) // tiles).to(tl.int64)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    first = tl.program_id(0) % tiles * QUERIES
    row = first + tl.arange(0, QUERIES)
    real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
    q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
    x, y = load_points(query_position, bag * queries, row, row < queries)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)

    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, end_of(real, keys), KEYS):
        column = start + tl.arange(0, KEYS)
        key_logit = tl.load(logit + group * keys + column, column < keys, float("-inf"))
        if is_any(key_logit != float("-inf")):
            k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
            v = load_rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + key_logit[None, :]
            scores += biases_of(
                source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
            )
            higher = tl.maximum(highest, tl.max(scores, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)  # avoids inf - inf
            weights = tl.exp(scores - level[:, None])
            fade = tl.exp(highest - level)
            total = total * fade + tl.sum(weights, 1)
            if seed is not None:
                weights *= dropout_factors(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
            summed = tl.dot(weights.to(v.dtype), v, summed * fade[:, None], input_precision=PRECISION)
            highest = higher

    found = real & (total != 0)  # true for NaN, which must not be hidden
    total = tl.where(found, total, 1.0)
    store_rows(
        out, bag_head * queries, row, row < queries, tl.where(found[:, None], summed / total[:, None], 0.0), DIM, WIDTH
    )
    tl.store(lse + bag_head * queries + row, tl.where(found, highest + tl.log(total), float("inf")), row < queries)


@triton.jit
def weigh_keys(
    query,
    key,
    query_position,
    key_position,
    mask,
    logit,
    bias,
    lse,
    mass,
    kept,
    queries,
    keys,
    scale,
    reach,
    chunk,
    chunks,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS_PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Mass of a tile of keys over a chunk of the queries, and their weights; ``mass`` is [chunks, B, H, J]."""
    part, start, bag_head = tile_of_keys(keys, chunks, KEYS)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    column = start + tl.arange(0, KEYS)
    key_logit = tl.load(logit + group * keys + column, column < keys, float("-inf"))
    k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)

    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for first in range(
        part * chunk, end_of(key_logit != float("-inf"), tl.minimum((part + 1) * chunk, queries)), QUERIES
    ):
        row = first + tl.arange(0, QUERIES)
        real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
        if is_any(real):
            q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
            x, y = load_points(query_position, bag * queries, row, row < queries)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + key_logit[None, :]
            scores += biases_of(
                source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
            )
            weights = tl.exp(scores - tl.load(lse + bag_head * queries + row, real, float("inf"))[:, None])
            total += weights
            if kept is not None:
                store_entries(kept, bag_head * queries, row, row < queries, column, weights, keys)

    bag_heads = tl.num_programs(0) // (chunks * tl.cdiv(keys, KEYS))
    tl.store(mass + (part * bag_heads + bag_head) * keys + column, tl.sum(total, 0), column < keys)
