# mypy: ignore-errors
"""Kernels of biased attention. Weights come back, tile by tile, from the log-sum-exp of a query, or as they were kept.

What all of them share:

* One axis of programs; each serves one head of one bag, ``bag_head = bag * HEADS + head``.
* A tile is ``QUERIES`` x ``KEYS``. ``WIDTH`` and ``HIDDEN`` are ``DIM`` and ``SIZE`` rounded up to what a product of
  tiles takes; what is added by that is zero.
* A network is evaluated key by key: its hidden layers, [QUERIES, HIDDEN], are the largest tiles there are. Keys that
  are taken out cost nothing.
* Of masked queries only positions are read, and they are finite. A query that is masked out or has no key has the
  log-sum-exp +inf, by which all its weights are zero.
"""

import triton
import triton.language as tl


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
    """Output and log-sum-exp of a tile of queries, by a softmax that takes in one tile of keys after the other."""
    tiles = tl.cdiv(queries, QUERIES)
    bag_head = (tl.program_id(0) // tiles).to(tl.int64)
    bag, group, inner = _head(bag_head, HEADS, GROUPS)
    first = tl.program_id(0) % tiles * QUERIES
    row = first + tl.arange(0, QUERIES)
    real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
    q = _rows(query, bag_head * queries, row, real, DIM, WIDTH)
    x, y = _points(query_position, bag * queries, row, row < queries)
    source = _load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)

    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, _end(real, keys), KEYS):
        column = start + tl.arange(0, KEYS)
        extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
        if _any(extra != float("-inf")):
            k = _rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
            v = _rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
            scores += _bias(
                source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
            )
            higher = tl.maximum(highest, tl.max(scores, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)  # so that no inf - inf is taken
            weights = tl.exp(scores - level[:, None])
            fade = tl.exp(highest - level)
            total = total * fade + tl.sum(weights, 1)
            if seed is not None:
                weights *= _keep(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
            summed = tl.dot(weights.to(v.dtype), v, summed * fade[:, None], input_precision=PRECISION)
            highest = higher

    found = real & (total != 0)  # true for NaN, which shall be seen
    total = tl.where(found, total, 1.0)
    _store_rows(
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
    part, start, bag_head = _key_tile(keys, chunks, KEYS)
    bag, group, inner = _head(bag_head, HEADS, GROUPS)
    column = start + tl.arange(0, KEYS)
    extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
    k = _rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
    source = _load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)

    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for first in range(part * chunk, _end(extra != float("-inf"), tl.minimum((part + 1) * chunk, queries)), QUERIES):
        row = first + tl.arange(0, QUERIES)
        real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
        if _any(real):
            q = _rows(query, bag_head * queries, row, real, DIM, WIDTH)
            x, y = _points(query_position, bag * queries, row, row < queries)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
            scores += _bias(
                source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
            )
            weights = tl.exp(scores - tl.load(lse + bag_head * queries + row, real, float("inf"))[:, None])
            total += weights
            if kept is not None:
                _store_entries(kept, bag_head * queries, row, row < queries, column, weights, keys)

    bag_heads = tl.num_programs(0) // (chunks * tl.cdiv(keys, KEYS))
    tl.store(mass + (part * bag_heads + bag_head) * keys + column, tl.sum(total, 0), column < keys)


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
    bag, group, inner = _head(bag_head, HEADS, GROUPS)
    first = tl.program_id(0) % tiles * QUERIES
    row = first + tl.arange(0, QUERIES)
    real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
    q = _rows(query, bag_head * queries, row, real, DIM, WIDTH)
    arriving = _rows(into_out, bag_head * queries, row, real, DIM, WIDTH)
    left = _rows(out, bag_head * queries, row, real, DIM, WIDTH)
    level = tl.load(lse + bag_head * queries + row, real, float("inf"))
    x, y = _points(query_position, bag * queries, row, row < queries)
    source = _load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    end = _end(real, keys)

    mean = tl.sum(arriving.to(tl.float32) * left.to(tl.float32), 1)
    if into_mass is not None or into_kept is not None:
        for start in range(0, end, KEYS):
            column = start + tl.arange(0, KEYS)
            extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
            if _any(extra != float("-inf")):
                if kept is None:
                    k = _rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
                    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
                    scores += _bias(
                        source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                    )
                    weights = tl.exp(scores - level[:, None])
                else:
                    weights = _entries(kept, bag_head * queries, row, real, column, keys)
                change = tl.zeros([QUERIES, KEYS], tl.float32)
                if into_mass is not None:
                    change += tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
                if into_kept is not None:
                    change += _entries(into_kept, bag_head * queries, row, real, column, keys)
                mean += tl.sum(weights * change, 1)
    tl.store(delta + bag_head * queries + row, mean, row < queries)

    summed = tl.zeros([QUERIES, WIDTH], tl.float32)
    along_x, along_y = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for start in range(0, end, KEYS):
        column = start + tl.arange(0, KEYS)
        extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
        if _any(extra != float("-inf")):
            k = _rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
            v = _rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
                scores += _bias(
                    source, x, y, key_position, logit, group * keys, column, keys, reach, KIND, SIZE, BIAS_PRECISION
                )
                weights = tl.exp(scores - level[:, None])
            else:
                weights = _entries(kept, bag_head * queries, row, real, column, keys)
            change = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                change *= _keep(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
            if into_mass is not None:
                change += tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)[None, :]
            if into_kept is not None:
                change += _entries(into_kept, bag_head * queries, row, real, column, keys)
            change = weights * (change - mean[:, None])
            summed = tl.dot(change.to(k.dtype), k, summed, input_precision=PRECISION)
            if into_position is not None and KIND == "table":
                from_x, from_y = _points(key_position, group * keys, column, column < keys)
                slope_x, slope_y = _table_slopes(
                    source, x[None, :] - from_x[:, None], y[None, :] - from_y[:, None], reach, SIZE
                )
                along_x += tl.sum(slope_x * tl.trans(change), 0)
                along_y += tl.sum(slope_y * tl.trans(change), 0)
            if into_position is not None and KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        away_x, away_y = _away(x, y, key_position, group * keys + j)
                        hidden, last = _activations(source, away_x, away_y, BIAS_PRECISION)
                        _, into_hidden = _through_network(
                            source, hidden, last, _take(change, column == j), BIAS_PRECISION
                        )
                        slope_x, slope_y = _network_slopes(source, away_x, away_y, into_hidden)
                        along_x += slope_x
                        along_y += slope_y

    _store_rows(into_query, bag_head * queries, row, row < queries, summed * scale, DIM, WIDTH)
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
    PRECISION: tl.constexpr,
    BIAS_PRECISION: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of a tile of keys over a chunk of the queries, and what both give to the gradient of the bias.

    All outputs are [chunks, B, H, J, ...], but for that of the bias: one flat network for each program, or one table
    for all of them, in whole numbers of 1 / ``fineness``, because whole numbers have the same sum in any order.
    """
    part, start, bag_head = _key_tile(keys, chunks, KEYS)
    bag, group, inner = _head(bag_head, HEADS, GROUPS)
    column = start + tl.arange(0, KEYS)
    extra = tl.load(logit + group * keys + column, column < keys, float("-inf"))
    k = _rows(key, bag_head * keys, column, column < keys, DIM, WIDTH)
    v = _rows(value, bag_head * keys, column, column < keys, DIM, WIDTH)
    if into_mass is not None:
        massed = tl.load(into_mass + bag_head * keys + column, column < keys, 0.0)
    source = _load_bias(bias, inner, HEADS // GROUPS, KIND, SIZE, HIDDEN)
    from_x, from_y = _points(key_position, group * keys, column, column < keys)

    into_k, into_v = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    changes = tl.zeros([QUERIES, KEYS], tl.float32)
    along_x, along_y = tl.zeros([QUERIES, KEYS], tl.float32), tl.zeros([QUERIES, KEYS], tl.float32)
    if KIND == "network":
        into_w2 = tl.zeros([HIDDEN, HIDDEN], tl.float32)
        into_w1x, into_w1y = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        into_b1, into_b2 = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
        into_w3 = tl.zeros([HIDDEN], tl.float32)
    for first in range(part * chunk, _end(extra != float("-inf"), tl.minimum((part + 1) * chunk, queries)), QUERIES):
        row = first + tl.arange(0, QUERIES)
        real = tl.load(mask + bag * queries + row, row < queries, 0) != 0
        if _any(real):
            q = _rows(query, bag_head * queries, row, real, DIM, WIDTH)
            arriving = _rows(into_out, bag_head * queries, row, real, DIM, WIDTH)
            level = tl.load(lse + bag_head * queries + row, real, float("inf"))
            mean = tl.load(delta + bag_head * queries + row, real, 0.0)
            x, y = _points(query_position, bag * queries, row, row < queries)
            if kept is None:
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + extra[None, :]
            else:
                weights = _entries(kept, bag_head * queries, row, real, column, keys)
            change = tl.dot(arriving, tl.trans(v), input_precision=PRECISION)
            if seed is not None:
                keep = _keep(seed, bag_head * queries + row, start, keys, dropout, keep_scale, KEYS)
                change *= keep
            if into_mass is not None:
                change += massed[None, :]
            if into_kept is not None:
                change += _entries(into_kept, bag_head * queries, row, real, column, keys)
            change -= mean[:, None]
            if KIND == "network":
                for j in range(start, tl.minimum(start + KEYS, keys)):
                    if tl.load(logit + group * keys + j) != float("-inf"):
                        here = column == j
                        away_x, away_y = _away(x, y, key_position, group * keys + j)
                        hidden, last = _activations(source, away_x, away_y, BIAS_PRECISION)
                        if kept is None:
                            scores += tl.where(here[None, :], _last_layer(source, last)[:, None], 0.0)
                            weight = tl.exp(_take(scores, here) - level)
                        else:
                            weight = _take(weights, here)
                        if into_bias is not None or into_position is not None:
                            moved = weight * _take(change, here)
                            into_last, into_hidden = _through_network(source, hidden, last, moved, BIAS_PRECISION)
                            if into_bias is not None:
                                into_w2 = tl.dot(tl.trans(hidden), into_last, into_w2, input_precision=BIAS_PRECISION)
                                into_w1x += tl.sum(into_hidden * _log_spaced(away_x)[:, None], 0)
                                into_w1y += tl.sum(into_hidden * _log_spaced(away_y)[:, None], 0)
                                into_b1 += tl.sum(into_hidden, 0)
                                into_b2 += tl.sum(into_last, 0)
                                into_w3 += tl.sum(last * moved[:, None], 0)
                            if into_position is not None:
                                slope_x, slope_y = _network_slopes(source, away_x, away_y, into_hidden)
                                along_x += tl.where(here[None, :], slope_x[:, None], 0.0)
                                along_y += tl.where(here[None, :], slope_y[:, None], 0.0)
            elif kept is None:
                scores += _bias(
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
                    _add_to_table(into_bias + inner * SIZE * SIZE, away_x, away_y, moved, reach, SIZE)
                if into_position is not None:
                    slope_x, slope_y = _table_slopes(source, away_x, away_y, reach, SIZE)
                    along_x += tl.trans(slope_x) * change
                    along_y += tl.trans(slope_y) * change

    bag_heads = tl.num_programs(0) // (chunks * tl.cdiv(keys, KEYS))
    base = (part * bag_heads + bag_head) * keys
    _store_rows(into_key, base, column, column < keys, into_k * scale, DIM, WIDTH)
    _store_rows(into_value, base, column, column < keys, into_v, DIM, WIDTH)
    tl.store(into_logit + base + column, tl.sum(changes, 0), column < keys)
    if into_position is not None:
        tl.store(into_position + 2 * (base + column), -tl.sum(along_x, 0), column < keys)
        tl.store(into_position + 2 * (base + column) + 1, -tl.sum(along_y, 0), column < keys)
    if KIND == "network" and into_bias is not None:
        unit = tl.arange(0, HIDDEN)
        there = unit < SIZE
        into_bias += tl.program_id(0).to(tl.int64) * ((SIZE + 5) * SIZE + 1)
        tl.store(into_bias + 2 * unit, into_w1x, there)
        tl.store(into_bias + 2 * unit + 1, into_w1y, there)
        tl.store(into_bias + 2 * SIZE + unit, into_b1, there)
        square = unit[None, :] * SIZE + unit[:, None]
        tl.store(into_bias + 3 * SIZE + square, into_w2, there[:, None] & there[None, :])
        tl.store(into_bias + (3 + SIZE) * SIZE + unit, into_b2, there)
        tl.store(into_bias + (4 + SIZE) * SIZE + unit, into_w3, there)
        tl.store(into_bias + (5 + SIZE) * SIZE, tl.sum(tl.sum(changes, 1), 0))


@triton.jit
def _head(bag_head, HEADS: tl.constexpr, GROUPS: tl.constexpr):
    """The bag, the group among all bags, and the place among the heads of the group."""
    bag, head = bag_head // HEADS, bag_head % HEADS
    inner: tl.constexpr = HEADS // GROUPS
    return bag, bag * GROUPS + head // inner, head % inner


@triton.jit
def _key_tile(keys, chunks, KEYS: tl.constexpr):
    """Of a program over keys: its chunk of queries, its first key, its bag and head."""
    tiles = tl.cdiv(keys, KEYS)
    tile = tl.program_id(0) // chunks
    return tl.program_id(0) % chunks, tile % tiles * KEYS, (tile // tiles).to(tl.int64)


@triton.jit
def _end(alive, end):
    """``end`` of a loop, or 0 where nobody is alive."""
    return tl.where(_any(alive), end, 0)


@triton.jit
def _any(flags):
    """Whether one of them is true."""
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit
def _rows(matrix, base, row, real, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [..., WIDTH] of a matrix with ``DIM`` columns, from row ``base`` on; zeros for those that are not real."""
    return _entries(matrix, base, row, real, tl.arange(0, WIDTH), DIM)


@triton.jit
def _store_rows(matrix, base, row, real, entries, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The opposite of _rows."""
    _store_entries(matrix, base, row, real, tl.arange(0, WIDTH), entries, DIM)


@triton.jit
def _entries(matrix, base, row, real, column, columns):
    """Entries of a matrix with so many columns, from row ``base`` on; zeros beyond it and where a row is not real."""
    inside = real[:, None] & (column < columns)[None, :]
    return tl.load(matrix + ((base + row)[:, None] * columns + column[None, :]), inside, 0.0)


@triton.jit
def _store_entries(matrix, base, row, real, column, entries, columns):
    """The opposite of _entries."""
    inside = real[:, None] & (column < columns)[None, :]
    tl.store(matrix + ((base + row)[:, None] * columns + column[None, :]), entries, inside)


@triton.jit
def _points(position, base, row, real):
    """x and y of positions."""
    place = position + 2 * (base + row)
    return tl.load(place, real, 0.0), tl.load(place + 1, real, 0.0)


@triton.jit
def _away(x, y, key_position, j):
    """Displacements from one key."""
    return x - tl.load(key_position + 2 * j), y - tl.load(key_position + 2 * j + 1)


@triton.jit
def _take(tile, here):
    """The one column of a tile that is here."""
    return tl.sum(tl.where(here[None, :], tile, 0.0), 1)


@triton.jit
def _keep(seed, row, start, keys, dropout, keep_scale, KEYS: tl.constexpr):
    """Factors of the weights under dropout [QUERIES, KEYS]. Four keys share a draw; the tiles make no difference."""
    four = start // 4 + tl.arange(0, KEYS // 4)
    a, b, c, d = tl.rand4x(tl.load(seed), row[:, None] * tl.cdiv(keys, 4) + four[None, :])
    drawn = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), [row.shape[0], KEYS])
    return tl.where(drawn >= dropout, keep_scale, 0.0)


@triton.jit
def _load_bias(bias, inner, HEADS: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr, HIDDEN: tl.constexpr):
    """What a head needs of the bias: its network, or where its table begins."""
    if KIND == "network":
        unit = tl.arange(0, HIDDEN)
        there = unit < SIZE
        w1x = tl.load(bias + 2 * unit, there, 0.0)
        w1y = tl.load(bias + 2 * unit + 1, there, 0.0)
        b1 = tl.load(bias + 2 * SIZE + unit, there, 0.0)
        square = unit[None, :] * SIZE + unit[:, None]  # transposed
        w2 = tl.load(bias + 3 * SIZE + square, there[:, None] & there[None, :], 0.0)
        b2 = tl.load(bias + (3 + SIZE) * SIZE + unit, there, 0.0)
        w3 = tl.load(bias + (4 + SIZE + inner) * SIZE + unit, there, 0.0)
        b3 = tl.load(bias + (4 + SIZE + HEADS) * SIZE + inner)
        return w1x, w1y, b1, w2, b2, w3, b3
    elif KIND == "table":
        return bias + inner * SIZE * SIZE
    else:
        return bias


@triton.jit
def _bias(
    source,
    x,
    y,
    key_position,
    logit,
    base,
    column,
    keys,
    reach,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Biases of a tile [QUERIES, KEYS]; of a network, only for keys that are not taken out."""
    if KIND == "table":
        # Neighbouring lanes take neighbouring queries, which read neighbouring nodes.
        from_x, from_y = _points(key_position, base, column, column < keys)
        low_x, share_x = _cell(x[None, :] - from_x[:, None], reach, SIZE)
        low_y, share_y = _cell(y[None, :] - from_y[:, None], reach, SIZE)
        a, b, c, d = _corners(source, low_x, low_y, SIZE)
        upper, lower = a + (b - a) * share_x, c + (d - c) * share_x
        return tl.trans(upper + (lower - upper) * share_y)
    biases = tl.zeros([x.shape[0], column.shape[0]], tl.float32)
    if KIND == "network":
        start = tl.min(column, 0)
        for j in range(start, tl.minimum(start + column.shape[0], keys)):
            if tl.load(logit + base + j) != float("-inf"):
                away_x, away_y = _away(x, y, key_position, base + j)
                _, last = _activations(source, away_x, away_y, PRECISION)
                biases += tl.where((column == j)[None, :], _last_layer(source, last)[:, None], 0.0)
    return biases


@triton.jit
def _cell(x, reach, SIZE: tl.constexpr):
    """The node of a table before x, and how far x is from it to the next; of NaN some node, and NaN."""
    place = tl.minimum(tl.maximum((x / reach + 1) * ((SIZE - 1) / 2), 0.0), SIZE - 1.0)
    low = tl.minimum(tl.maximum(place.to(tl.int32), 0), SIZE - 2)
    return low, tl.where(x == x, place - low, float("nan"))


@triton.jit
def _corners(table, low_x, low_y, SIZE: tl.constexpr):
    """The four nodes around a place, row by row."""
    corner = table + (low_y * SIZE + low_x)
    a, b = tl.load(corner).to(tl.float32), tl.load(corner + 1).to(tl.float32)
    return a, b, tl.load(corner + SIZE).to(tl.float32), tl.load(corner + SIZE + 1).to(tl.float32)


@triton.jit
def _table_slopes(table, x, y, reach, SIZE: tl.constexpr):
    """Derivatives of a table by x and y; none beyond its edges."""
    low_x, share_x = _cell(x, reach, SIZE)
    low_y, share_y = _cell(y, reach, SIZE)
    a, b, c, d = _corners(table, low_x, low_y, SIZE)
    steep, twist = (SIZE - 1) / (2 * reach), d - c - b + a
    slope_x = tl.where(tl.abs(x) < reach, (b - a + twist * share_y) * steep, 0.0)
    slope_y = tl.where(tl.abs(y) < reach, (c - a + twist * share_x) * steep, 0.0)
    return slope_x, slope_y


@triton.jit
def _add_to_table(table, x, y, change, reach, SIZE: tl.constexpr):
    """Share each change out to the four nodes around its place, in whole numbers."""
    low_x, share_x = _cell(x, reach, SIZE)
    low_y, share_y = _cell(y, reach, SIZE)
    corner = table + (low_y * SIZE + low_x)
    upper, lower = change * (1 - share_y), change * share_y
    tl.atomic_add(corner, (upper * (1 - share_x)).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + 1, (upper * share_x).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + SIZE, (lower * (1 - share_x)).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + SIZE + 1, (lower * share_x).to(tl.int64), sem="relaxed")


@triton.jit
def _log_spaced(x):
    """sign(x) log(1 + abs(x))."""
    spaced = tl.log(1 + tl.abs(x))
    return tl.where(x < 0, -spaced, spaced)


@triton.jit
def _activations(network, x, y, PRECISION: tl.constexpr):
    """Both hidden layers of a network [QUERIES, HIDDEN]."""
    hidden = _log_spaced(x)[:, None] * network[0][None, :] + _log_spaced(y)[:, None] * network[1][None, :]
    hidden = tl.maximum(hidden + network[2][None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
    last = tl.dot(hidden, network[3], input_precision=PRECISION) + network[4][None, :]
    return hidden, tl.maximum(last, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _last_layer(network, last):
    """Biases from the second hidden layer [QUERIES]."""
    return tl.sum(last * network[5][None, :], 1) + network[6]


@triton.jit
def _through_network(network, hidden, last, change, PRECISION: tl.constexpr):
    """From the gradient of biases to those of both hidden layers before their ReLU, the second one first."""
    into_last = tl.where(last > 0, change[:, None] * network[5][None, :], 0.0)
    into_hidden = tl.dot(into_last, tl.trans(network[3]), input_precision=PRECISION)
    return into_last, tl.where(hidden > 0, into_hidden, 0.0)


@triton.jit
def _network_slopes(network, x, y, into_hidden):
    """Gradients of displacements from that of the first hidden layer."""
    slope_x = tl.sum(into_hidden * network[0][None, :], 1) / (1 + tl.abs(x))
    slope_y = tl.sum(into_hidden * network[1][None, :], 1) / (1 + tl.abs(y))
    return slope_x, slope_y
