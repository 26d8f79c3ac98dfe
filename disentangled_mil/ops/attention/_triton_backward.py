# mypy: ignore-errors
"""Kernels of the backward pass of biased attention; :mod:`._triton_kernels` states their conventions."""

import triton
import triton.language as tl

from ._triton_bias import (
    activations,
    add_to_table,
    addresses_of,
    back_through,
    biases_of,
    displacements_from,
    last_layer,
    load_bias,
    log_spaced,
    network_slopes,
    table_slopes,
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
def grad_queries(
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
    grad_out,
    grad_mass,
    kept,
    grad_kept,
    grad_query,
    grad_position,
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
    """Gradients of a tile of queries and of their positions, and ``delta``, the weighted mean of dW of each query."""
    tiles = tl.cdiv(queries, QUERIES)
    bag_head = (tl.program_id(0) // tiles).to(tl.int64)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    first = tl.program_id(0) % tiles * QUERIES
    row = first + tl.arange(0, QUERIES)
    real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
    q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
    arriving = load_rows(grad_out, bag_head * queries, row, real, DIM, WIDTH)
    attended = load_rows(out, bag_head * queries, row, real, DIM, WIDTH)
    level = tl.load(lse + bag_head * queries + row, real, float("inf"))
    x, y = load_points(query_position, bag * queries, row, row < queries)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    end = end_of(real, keys)

    mean = tl.sum(arriving.to(tl.float32) * attended.to(tl.float32), 1)
    if grad_mass is not None or grad_kept is not None:
        for start in range(0, end, KEYS):
            column = start + tl.arange(0, KEYS)
            key_logit = tl.load(logit + group * keys + column, column < keys, float("-inf"))
            if is_any(key_logit != float("-inf")):
                if kept is None:
                    k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
                    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + key_logit[None, :]
                    scores += biases_of(
                        source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                    )
                    weights = tl.exp(scores - level[:, None])
                else:
                    weights = load_entries(kept, bag_head * queries, row, real, column, keys)
                grad_weights = tl.zeros([QUERIES, KEYS], tl.float32)
                if grad_mass is not None:
                    grad_weights += tl.load(grad_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
                if grad_kept is not None:
                    grad_weights += load_entries(grad_kept, bag_head * queries, row, real, column, keys)
                mean += tl.sum(weights * grad_weights, 1)
    tl.store(delta + bag_head * queries + row, mean, row < queries)

    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    grad_x, grad_y = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for start in range(0, end, KEYS):
        column = start + tl.arange(0, KEYS)
        key_logit = tl.load(logit + group * keys + column, column < keys, float("-inf"))
        if is_any(key_logit != float("-inf")):
            k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
            v = load_rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + key_logit[None, :]
                scores += biases_of(
                    source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                )
                weights = tl.exp(scores - level[:, None])
            else:
                weights = load_entries(kept, bag_head * queries, row, real, column, keys)
            grad_weights = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                grad_weights *= dropout_factors(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
            if grad_mass is not None:
                grad_weights += tl.load(grad_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
            if grad_kept is not None:
                grad_weights += load_entries(grad_kept, bag_head * queries, row, real, column, keys)
            grad_scores = weights * (grad_weights - mean[:, None])
            summed = tl.dot(grad_scores.to(k.dtype), k, summed, input_precision=PRECISION)
            if grad_position is not None and KIND == "table":
                key_x, key_y = load_points(key_position, group * keys, column, column < keys)
                slope_x, slope_y = table_slopes(
                    source, x[None, :] - key_x[:, None], y[None, :] - key_y[:, None], reach, SIZE
                )
                grad_x += tl.sum(slope_x * tl.trans(grad_scores), 0)
                grad_y += tl.sum(slope_y * tl.trans(grad_scores), 0)
            if grad_position is not None and KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        displacement_x, displacement_y = displacements_from(x, y, key_position, group * keys + j)
                        hidden, last = activations(source, displacement_x, displacement_y, BIAS_PRECISION)
                        grad_biases = column_where(grad_scores, column == j)
                        _, grad_hidden = back_through(source, hidden, last, grad_biases, BIAS_PRECISION)
                        slope_x, slope_y = network_slopes(source, displacement_x, displacement_y, grad_hidden)
                        grad_x += slope_x
                        grad_y += slope_y

    store_rows(grad_query, bag_head * queries, row, row < queries, summed * scale, DIM, WIDTH)
    if grad_position is not None:
        tl.store(grad_position + 2 * (bag_head * queries + row), grad_x, row < queries)
        tl.store(grad_position + 2 * (bag_head * queries + row) + 1, grad_y, row < queries)


@triton.jit
def grad_keys(
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
    grad_out,
    grad_mass,
    kept,
    grad_kept,
    fixed_point_scale,
    grad_key,
    grad_value,
    grad_logit,
    grad_position,
    grad_bias,
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
    ``BIAS_SIZE`` numbers for each program, or one table for all programs. Entries of the table are integers in units
    of 1 / ``fixed_point_scale``, because integers have the same sum in any order.
    """
    part, start, bag_head = tile_of_keys(keys, chunks, KEYS)
    bag, group, inner = head_of(bag_head, HEADS, GROUPS)
    column = start + tl.arange(0, KEYS)
    key_logit = tl.load(logit + group * keys + column, column < keys, float("-inf"))
    k = load_rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
    v = load_rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
    if grad_mass is not None:
        grad_mass_of_keys = tl.load(grad_mass + bag_head * keys + column, column < keys, 0.0)
    source = load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    key_x, key_y = load_points(key_position, group * keys, column, column < keys)

    grad_k, grad_v = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    sum_of_grad_scores = tl.zeros([QUERIES, KEYS], tl.float32)
    grad_x, grad_y = tl.zeros([QUERIES, KEYS], tl.float32), tl.zeros([QUERIES, KEYS], tl.float32)
    if KIND == "network":
        grad_w2 = tl.zeros([HIDDEN, HIDDEN], tl.float32)
        grad_w1x, grad_w1y = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        grad_b1, grad_b2 = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        grad_w3 = tl.zeros([HIDDEN], tl.float32)
    for first in range(
        part * chunk, end_of(key_logit != float("-inf"), tl.minimum((part + 1) * chunk, queries)), QUERIES
    ):
        row = first + tl.arange(0, QUERIES)
        real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
        if is_any(real):
            q = load_rows(query, bag_head * queries, row, real, DIM, WIDTH)
            arriving = load_rows(grad_out, bag_head * queries, row, real, DIM, WIDTH)
            level = tl.load(lse + bag_head * queries + row, real, float("inf"))
            mean = tl.load(delta + bag_head * queries + row, real, 0.0)
            x, y = load_points(query_position, bag * queries, row, row < queries)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + key_logit[None, :]
            else:
                weights = load_entries(kept, bag_head * queries, row, real, column, keys)
            grad_weights = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                keep = dropout_factors(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
                grad_weights *= keep
            if grad_mass is not None:
                grad_weights += grad_mass_of_keys[None, :]
            if grad_kept is not None:
                grad_weights += load_entries(grad_kept, bag_head * queries, row, real, column, keys)
            grad_weights -= mean[:, None]
            if KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        here = column == j
                        displacement_x, displacement_y = displacements_from(x, y, key_position, group * keys + j)
                        hidden, last = activations(source, displacement_x, displacement_y, BIAS_PRECISION)
                        if kept is None:
                            scores += tl.where(here[None, :], last_layer(source, last)[:, None], 0.0)
                            weight = tl.exp(column_where(scores, here) - level)
                        else:
                            weight = column_where(weights, here)
                        if grad_bias is not None or grad_position is not None:
                            grad_biases = weight * column_where(grad_weights, here)
                            grad_last, grad_hidden = back_through(source, hidden, last, grad_biases, BIAS_PRECISION)
                            if grad_bias is not None:
                                grad_w2 = tl.dot(tl.trans(hidden), grad_last, grad_w2, input_precision=BIAS_PRECISION)
                                grad_w1x += tl.sum(grad_hidden * log_spaced(displacement_x)[:, None], 0)
                                grad_w1y += tl.sum(grad_hidden * log_spaced(displacement_y)[:, None], 0)
                                grad_b1 += tl.sum(grad_hidden, 0)
                                grad_b2 += tl.sum(grad_last, 0)
                                grad_w3 += tl.sum(last * grad_biases[:, None], 0)
                            if grad_position is not None:
                                slope_x, slope_y = network_slopes(source, displacement_x, displacement_y, grad_hidden)
                                grad_x += tl.where(here[None, :], slope_x[:, None], 0.0)
                                grad_y += tl.where(here[None, :], slope_y[:, None], 0.0)
            elif kept is None:
                scores += biases_of(
                    source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                )
            if kept is None:
                weights = tl.exp(scores - level[:, None])
            grad_scores = grad_weights * weights
            sum_of_grad_scores += grad_scores
            grad_k = tl.dot(tl.trans(grad_scores.to(q.dtype)), q, grad_k, input_precision=PRECISION)
            if seed is not None:
                weights *= keep
            grad_v = tl.dot(tl.trans(weights.to(v.dtype)), arriving, grad_v, input_precision=PRECISION)
            if KIND == "table":
                displacement_x, displacement_y = x[None, :] - key_x[:, None], y[None, :] - key_y[:, None]
                if grad_bias is not None:
                    fixed_point = tl.trans(grad_scores) * tl.load(fixed_point_scale)
                    add_to_table(
                        grad_bias + inner * SIZE * SIZE, displacement_x, displacement_y, fixed_point, reach, SIZE
                    )
                if grad_position is not None:
                    slope_x, slope_y = table_slopes(source, displacement_x, displacement_y, reach, SIZE)
                    grad_x += tl.trans(slope_x) * grad_scores
                    grad_y += tl.trans(slope_y) * grad_scores

    bag_heads = tl.num_programs(0) // (chunks * tl.cdiv(keys, KEYS))
    base = (part * bag_heads + bag_head) * keys
    store_rows(grad_key, base, column, column < keys, grad_k * scale, DIM, WIDTH)
    store_rows(grad_value, base, column, column < keys, grad_v, DIM, WIDTH)
    tl.store(grad_logit + base + column, tl.sum(sum_of_grad_scores, 0), column < keys)
    if grad_position is not None:
        tl.store(grad_position + 2 * (base + column), -tl.sum(grad_x, 0), column < keys)
        tl.store(grad_position + 2 * (base + column) + 1, -tl.sum(grad_y, 0), column < keys)
    if KIND == "network" and grad_bias is not None:
        w1, b1, w2, b2, w3, b3 = addresses_of(grad_bias + tl.program_id(0).to(tl.int64) * BIAS_SIZE, 1, SIZE)
        unit, exists, pair, both_exist = units_of(SIZE, HIDDEN)
        tl.store(w1 + 2 * unit, grad_w1x, exists)
        tl.store(w1 + 2 * unit + 1, grad_w1y, exists)
        tl.store(b1 + unit, grad_b1, exists)
        tl.store(w2 + pair, grad_w2, both_exist)
        tl.store(b2 + unit, grad_b2, exists)
        tl.store(w3 + unit, grad_w3, exists)
        tl.store(b3, tl.sum(tl.sum(sum_of_grad_scores, 1), 0))
