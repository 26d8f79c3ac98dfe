# mypy: ignore-errors
"""Kernels of the backward pass of biased attention; :mod:`._triton_kernels` states their conventions."""

import triton
import triton.language as tl

from ._triton_bias import (
    activations,
    add_to_table,
    addresses_of,
    away_from,
    biases_of,
    last_layer,
    load_bias,
    log_spaced,
    network_slopes,
    table_slopes,
    through_network,
    units_of,
)
from ._triton_tiles import (
    column_where,
    dropout_factors,
    end_of,
    head_of,
    is_any,
    load_entries,
    load_points,
    load_rows,
    store_rows,
    tile_of_keys,
)


@triton.jit
def into_queries(
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
    into_out,
    into_mass,
    kept,
    into_kept,
    into_query,
    into_position,
    delta,
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
    """Gradients of a tile of queries and of their positions, and delta: the mean of the gradients of their weights."""
    tiles = tl.cdiv(queries, QUERIES)
    bag_head = (tl.program_id(0) // tiles).to(tl.int64)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    first = tl.program_id(0) % tiles * QUERIES
    row = first + tl.arange(0, QUERIES)
    real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
    q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
    arriving = load_rows(into_out, bag_head * queries, row, real, DIM, WIDTH)
    left = load_rows(out, bag_head * queries, row, real, DIM, WIDTH)
    level = tl.load(lse + bag_head * queries + row, real, float("inf"))
    x, y = load_points(query_position, bag * queries, row, row < queries)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    end = end_of(real, keys)

    mean = tl.sum(arriving.to(tl.float32) * left.to(tl.float32), 1)
    if into_mass is not None or into_kept is not None:
        for start in range(0, end, KEYS):
            column = start + tl.arange(0, KEYS)
            extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
            if is_any(extra != float("-inf")):
                if kept is None:
                    k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
                    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
                    scores += biases_of(
                        source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                    )
                    weights = tl.exp(scores - level[:, None])
                else:
                    weights = load_entries(kept, bag_head * queries, row, real, column, keys)
                change = tl.zeros([QUERIES, KEYS], tl.float32)
                if into_mass is not None:
                    change += tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
                if into_kept is not None:
                    change += load_entries(into_kept, bag_head * queries, row, real, column, keys)
                mean += tl.sum(weights * change, 1)
    tl.store(delta + bag_head * queries + row, mean, row < queries)

    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    along_x, along_y = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for start in range(0, end, KEYS):
        column = start + tl.arange(0, KEYS)
        extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
        if is_any(extra != float("-inf")):
            k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
            v = load_rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
                scores += biases_of(
                    source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                )
                weights = tl.exp(scores - level[:, None])
            else:
                weights = load_entries(kept, bag_head * queries, row, real, column, keys)
            change = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                change *= dropout_factors(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
            if into_mass is not None:
                change += tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
            if into_kept is not None:
                change += load_entries(into_kept, bag_head * queries, row, real, column, keys)
            change = weights * (change - mean[:, None])
            summed = tl.dot(change.to(k.dtype), k, summed, input_precision=PRECISION)
            if into_position is not None and KIND == "table":
                from_x, from_y = load_points(key_position, group * keys, column, column < keys)
                slope_x, slope_y = table_slopes(
                    source, x[None, :] - from_x[:, None], y[None, :] - from_y[:, None], reach, SIZE
                )
                along_x += tl.sum(slope_x * tl.trans(change), 0)
                along_y += tl.sum(slope_y * tl.trans(change), 0)
            if into_position is not None and KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        away_x, away_y = away_from(x, y, key_position, group * keys + j)
                        hidden, last = activations(source, away_x, away_y, BIAS_PRECISION)
                        _, into_hidden = through_network(
                            source, hidden, last, column_where(change, column == j), BIAS_PRECISION
                        )
                        slope_x, slope_y = network_slopes(source, away_x, away_y, into_hidden)
                        along_x += slope_x
                        along_y += slope_y

    store_rows(into_query, bag_head * queries, row, row < queries, summed * scale, DIM, WIDTH)
    if into_position is not None:
        tl.store(into_position + 2 * (bag_head * queries + row), along_x, row < queries)
        tl.store(into_position + 2 * (bag_head * queries + row) + 1, along_y, row < queries)


@triton.jit
def into_keys(
    query,
    key,
    value,
    query_position,
    key_position,
    mask,
    logit,
    bias,
    seed,
    lse,
    delta,
    into_out,
    into_mass,
    kept,
    into_kept,
    fineness,
    into_key,
    into_value,
    into_logit,
    into_position,
    into_bias,
    queries,
    keys,
    scale,
    reach,
    dropout,
    keep_scale,
    chunk,
    chunks,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    HIDDEN: tl.constexpr,
    BIAS_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS_PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of a tile of keys from a chunk of the queries, and their part of the gradient of the bias.

    Outputs have the shape [chunks, B, H, J, ...], except for the bias. Its gradient is one flat network of
    ``BIAS_SIZE`` numbers for each program, or one table for all programs. Entries of the table are whole numbers in
    units of 1 / ``fineness``, because whole numbers have the same sum in any order.
    """
    part, start, bag_head = tile_of_keys(keys, chunks, KEYS)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    column = start + tl.arange(0, KEYS)
    extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
    k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
    v = load_rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
    if into_mass is not None:
        massed = tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    from_x, from_y = load_points(key_position, group * keys, column, column < keys)

    into_k, into_v = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    changes = tl.zeros([QUERIES, KEYS], tl.float32)
    along_x, along_y = tl.zeros([QUERIES, KEYS], tl.float32), tl.zeros([QUERIES, KEYS], tl.float32)
    if KIND == "network":
        into_w2 = tl.zeros([HIDDEN, HIDDEN], tl.float32)
        into_w1x, into_w1y = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        into_b1, into_b2 = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        into_w3 = tl.zeros([HIDDEN], tl.float32)
    for first in range(part * chunk, end_of(extra != float("-inf"), tl.minimum((part + 1) * chunk, queries)), QUERIES):
        row = first + tl.arange(0, QUERIES)
        real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
        if is_any(real):
            q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
            arriving = load_rows(into_out, bag_head * queries, row, real, DIM, WIDTH)
            level = tl.load(lse + bag_head * queries + row, real, float("inf"))
            mean = tl.load(delta + bag_head * queries + row, real, 0.0)
            x, y = load_points(query_position, bag * queries, row, row < queries)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
            else:
                weights = load_entries(kept, bag_head * queries, row, real, column, keys)
            change = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                keep = dropout_factors(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
                change *= keep
            if into_mass is not None:
                change += massed[None, :]
            if into_kept is not None:
                change += load_entries(into_kept, bag_head * queries, row, real, column, keys)
            change -= mean[:, None]
            if KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        here = column == j
                        away_x, away_y = away_from(x, y, key_position, group * keys + j)
                        hidden, last = activations(source, away_x, away_y, BIAS_PRECISION)
                        if kept is None:
                            scores += tl.where(here[None, :], last_layer(source, last)[:, None], 0.0)
                            weight = tl.exp(column_where(scores, here) - level)
                        else:
                            weight = column_where(weights, here)
                        if into_bias is not None or into_position is not None:
                            moved = weight * column_where(change, here)
                            into_last, into_hidden = through_network(source, hidden, last, moved, BIAS_PRECISION)
                            if into_bias is not None:
                                into_w2 = tl.dot(tl.trans(hidden), into_last, into_w2, input_precision=BIAS_PRECISION)
                                into_w1x += tl.sum(into_hidden * log_spaced(away_x)[:, None], 0)
                                into_w1y += tl.sum(into_hidden * log_spaced(away_y)[:, None], 0)
                                into_b1 += tl.sum(into_hidden, 0)
                                into_b2 += tl.sum(into_last, 0)
                                into_w3 += tl.sum(last * moved[:, None], 0)
                            if into_position is not None:
                                slope_x, slope_y = network_slopes(source, away_x, away_y, into_hidden)
                                along_x += tl.where(here[None, :], slope_x[:, None], 0.0)
                                along_y += tl.where(here[None, :], slope_y[:, None], 0.0)
            elif kept is None:
                scores += biases_of(
                    source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                )
            if kept is None:
                weights = tl.exp(scores - level[:, None])
            change *= weights
            changes += change
            into_k = tl.dot(tl.trans(change.to(q.dtype)), q, into_k, input_precision=PRECISION)
            if seed is not None:
                weights *= keep
            into_v = tl.dot(tl.trans(weights.to(v.dtype)), arriving, into_v, input_precision=PRECISION)
            if KIND == "table":
                away_x, away_y = x[None, :] - from_x[:, None], y[None, :] - from_y[:, None]
                if into_bias is not None:
                    moved = tl.trans(change) * tl.load(fineness)
                    add_to_table(into_bias + inner * SIZE * SIZE, away_x, away_y, moved, reach, SIZE)
                if into_position is not None:
                    slope_x, slope_y = table_slopes(source, away_x, away_y, reach, SIZE)
                    along_x += tl.trans(slope_x) * change
                    along_y += tl.trans(slope_y) * change

    bag_heads = tl.num_programs(0) // (chunks * tl.cdiv(keys, KEYS))
    base = (part * bag_heads + bag_head) * keys
    store_rows(into_key, base, column, column < keys, into_k * scale, DIM, WIDTH)
    store_rows(into_value, base, column, column < keys, into_v, DIM, WIDTH)
    tl.store(into_logit + base + column, tl.sum(changes, 0), column < keys)
    if into_position is not None:
        tl.store(into_position + 2 * (base + column), -tl.sum(along_x, 0), column < keys)
        tl.store(into_position + 2 * (base + column) + 1, -tl.sum(along_y, 0), column < keys)
    if KIND == "network" and into_bias is not None:
        w1, b1, w2, b2, w3, b3 = addresses_of(into_bias + tl.program_id(0).to(tl.int64) * BIAS_SIZE, 1, SIZE)
        unit, exists, pair, both_exist = units_of(SIZE, HIDDEN)
        tl.store(w1 + 2 * unit, into_w1x, exists)
        tl.store(w1 + 2 * unit + 1, into_w1y, exists)
        tl.store(b1 + unit, into_b1, exists)
        tl.store(w2 + pair, into_w2, both_exist)
        tl.store(b2 + unit, into_b2, exists)
        tl.store(w3 + unit, into_w3, exists)
        tl.store(b3, tl.sum(tl.sum(changes, 1), 0))
