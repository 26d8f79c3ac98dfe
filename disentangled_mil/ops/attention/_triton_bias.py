# mypy: ignore-errors
"""Position biases inside kernels, from a table or a network, and their gradients."""

import triton
import triton.language as tl

from ._triton_tiles import load_points


@triton.jit
def addresses_of(network, HEADS_IN_ROW: tl.constexpr, SIZE: tl.constexpr):
    """The addresses of w1, b1, w2, b2, w3 and b3 in the row that ``FlatNetwork`` describes."""
    b1 = network + 2 * SIZE
    w2 = b1 + SIZE
    b2 = w2 + SIZE * SIZE
    w3 = b2 + SIZE
    return network, b1, w2, b2, w3, w3 + HEADS_IN_ROW * SIZE


@triton.jit
def units_of(SIZE: tl.constexpr, HIDDEN: tl.constexpr):
    """Units of a hidden layer, which of them exist, offsets of w2 as [in, out], and which of these exist."""
    unit = tl.arange(0, HIDDEN)
    exists = unit < SIZE
    return unit, exists, unit[None, :] * SIZE + unit[:, None], exists[:, None] & exists[None, :]


@triton.jit
def load_bias(bias, inner, HEADS_IN_ROW: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr, HIDDEN: tl.constexpr):
    """The parameters of a head's network (w1 by column, b1, w2 transposed, b2, w3, b3), or the address of its table."""
    if KIND == "network":
        w1, b1, w2, b2, w3, b3 = addresses_of(bias, HEADS_IN_ROW, SIZE)
        unit, exists, pair, both_exist = units_of(SIZE, HIDDEN)
        w1x = tl.load(w1 + 2 * unit, exists, 0.0)
        w1y = tl.load(w1 + 2 * unit + 1, exists, 0.0)
        return (
            w1x,
            w1y,
            tl.load(b1 + unit, exists, 0.0),
            tl.load(w2 + pair, both_exist, 0.0),
            tl.load(b2 + unit, exists, 0.0),
            tl.load(w3 + inner * SIZE + unit, exists, 0.0),
            tl.load(b3 + inner),
        )
    elif KIND == "table":
        return bias + inner * SIZE * SIZE
    else:
        return bias


@triton.jit
def biases_of(
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
    """Biases of a tile [QUERIES, KEYS]; a network leaves zeros for keys that are taken out."""
    if KIND == "table":
        # Neighboring lanes serve neighboring queries, which read neighboring nodes.
        key_x, key_y = load_points(key_position, base, column, column < keys)
        low_x, share_x = _cell(x[None, :] - key_x[:, None], reach, SIZE)
        low_y, share_y = _cell(y[None, :] - key_y[:, None], reach, SIZE)
        a, b, c, d = _corners(source, low_x, low_y, SIZE)
        upper, lower = a + (b - a) * share_x, c + (d - c) * share_x
        return tl.trans(upper + (lower - upper) * share_y)
    biases = tl.zeros([x.shape[0], column.shape[0]], tl.float32)
    if KIND == "network":
        start = tl.min(column, 0)
        for j in range(start, tl.minimum(start + column.shape[0], keys)):
            if tl.load(logit + base + j) != float("-inf"):
                displacement_x, displacement_y = displacements_from(x, y, key_position, base + j)
                _, last = activations(source, displacement_x, displacement_y, PRECISION)
                biases += tl.where((column == j)[None, :], last_layer(source, last)[:, None], 0.0)
    return biases


@triton.jit
def displacements_from(x, y, key_position, j):
    """Displacements of queries from one key."""
    return x - tl.load(key_position + 2 * j), y - tl.load(key_position + 2 * j + 1)


@triton.jit
def _cell(x, reach, SIZE: tl.constexpr):
    """The node of a table at or below x, and the fraction of the way from it to the next node; NaN for NaN."""
    coordinate = tl.minimum(tl.maximum((x / reach + 1) * ((SIZE - 1) / 2), 0.0), SIZE - 1.0)
    low = tl.minimum(tl.maximum(coordinate.to(tl.int32), 0), SIZE - 2)
    return low, tl.where(x == x, coordinate - low, float("nan"))


@triton.jit
def _corners(table, low_x, low_y, SIZE: tl.constexpr):
    """The values of a cell's four nodes, row by row."""
    corner = table + (low_y * SIZE + low_x)
    a, b = tl.load(corner).to(tl.float32), tl.load(corner + 1).to(tl.float32)
    return a, b, tl.load(corner + SIZE).to(tl.float32), tl.load(corner + SIZE + 1).to(tl.float32)


@triton.jit
def table_slopes(table, x, y, reach, SIZE: tl.constexpr):
    """Derivatives of a table with respect to x and y; zero at its edges and beyond."""
    low_x, share_x = _cell(x, reach, SIZE)
    low_y, share_y = _cell(y, reach, SIZE)
    a, b, c, d = _corners(table, low_x, low_y, SIZE)
    cells_per_unit, twist = (SIZE - 1) / (2 * reach), d - c - b + a
    slope_x = tl.where(tl.abs(x) < reach, (b - a + twist * share_y) * cells_per_unit, 0.0)
    slope_y = tl.where(tl.abs(y) < reach, (c - a + twist * share_x) * cells_per_unit, 0.0)
    return slope_x, slope_y


@triton.jit
def add_to_table(table, x, y, added, reach, SIZE: tl.constexpr):
    """Distribute each addend over the four nodes around its displacement; fractions of the fixed point are cut off."""
    low_x, share_x = _cell(x, reach, SIZE)
    low_y, share_y = _cell(y, reach, SIZE)
    corner = table + (low_y * SIZE + low_x)
    upper, lower = added * (1 - share_y), added * share_y
    tl.atomic_add(corner, (upper * (1 - share_x)).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + 1, (upper * share_x).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + SIZE, (lower * (1 - share_x)).to(tl.int64), sem="relaxed")
    tl.atomic_add(corner + SIZE + 1, (lower * share_x).to(tl.int64), sem="relaxed")


@triton.jit
def log_spaced(x):
    """sign(x) log(1 + abs(x))."""
    spaced = tl.log(1 + tl.abs(x))
    return tl.where(x < 0, -spaced, spaced)


@triton.jit
def activations(network, x, y, PRECISION: tl.constexpr):
    """Both hidden layers of a network [QUERIES, HIDDEN]."""
    w1x, w1y, b1, w2, b2, _, _ = network
    hidden = log_spaced(x)[:, None] * w1x[None, :] + log_spaced(y)[:, None] * w1y[None, :]
    hidden = tl.maximum(hidden + b1[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
    last = tl.dot(hidden, w2, input_precision=PRECISION) + b2[None, :]
    return hidden, tl.maximum(last, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def last_layer(network, last):
    """Biases from the second hidden layer [QUERIES]."""
    _, _, _, _, _, w3, b3 = network
    return tl.sum(last * w3[None, :], 1) + b3


@triton.jit
def back_through(network, hidden, last, grad_biases, PRECISION: tl.constexpr):
    """The gradients of the second and the first hidden layer before their ReLU, from that of the biases."""
    _, _, _, w2, _, w3, _ = network
    grad_last = tl.where(last > 0, grad_biases[:, None] * w3[None, :], 0.0)
    grad_hidden = tl.dot(grad_last, tl.trans(w2), input_precision=PRECISION)
    return grad_last, tl.where(hidden > 0, grad_hidden, 0.0)


@triton.jit
def network_slopes(network, x, y, grad_hidden):
    """Gradients of displacements from that of the first hidden layer."""
    w1x, w1y, _, _, _, _, _ = network
    slope_x = tl.sum(grad_hidden * w1x[None, :], 1) / (1 + tl.abs(x))
    slope_y = tl.sum(grad_hidden * w1y[None, :], 1) / (1 + tl.abs(y))
    return slope_x, slope_y
