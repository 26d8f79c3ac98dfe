r"""A part of the tokens of a bag, spread evenly over its tissue.

Tokens are put in the order of a Z curve, which visits a square before it leaves it, and every n-th of them is taken
from a random start. Each square of the curve then keeps its share of the tokens, give or take one token. Tokens without
coordinates are drawn at random.

Where one of n tokens is taken, neighbors lie about :math:`\sqrt n` times as far apart. Cells should grow by this
factor. Otherwise most cells would be empty, and the number of sampled keys would not fall.
"""

import torch
from torch import Tensor

from .._checks import check_count, check_shape, check_type
from .bag import Bag, collate_bags
from .grid import Grid
from .token_set import TokenSet

_BITS = 16  # Cells per axis of the curve, 65,536, are more than tiles per axis of any slide.


def spread_rows(count: int, max_tokens: int, coords: Tensor | None, seed: int) -> Tensor:
    """Rows of at most ``max_tokens`` of ``count`` tokens, ascending.

    Args:
        count: number of tokens.
        max_tokens: largest number of tokens to keep.
        coords: (x, y) of every token; None where they have none.
        seed: seed of the start, or of the draw.

    Shape:
        ``coords`` [count, 2].

    Returns:
        Rows [min(count, max_tokens)].
    """
    check_count("count", count, minimum=0)
    check_count("max_tokens", max_tokens)
    check_count("seed", seed, minimum=0)
    if coords is not None:
        check_shape("coords", coords, "count 2", {"count": count})
    if count <= max_tokens:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    if coords is None:
        return torch.randperm(count, generator=generator)[:max_tokens].sort().values
    start = torch.rand((), generator=generator, dtype=torch.float64)
    # The last one may round up to the number of tokens.
    ranks = ((start + torch.arange(max_tokens)) * (count / max_tokens)).long().clamp(max=count - 1)
    return _z_order(coords.cpu()).argsort(stable=True)[ranks].sort().values


def thin(bag: Bag, max_tokens: int, *, seed: int = 0) -> Bag:
    """Keep a part of the tokens of every bag that is too large, spread evenly over its tissue.

    Args:
        bag: bags of any sizes.
        max_tokens: largest number of real tokens of a bag.
        seed: seed of the choice; tokens without coordinates are drawn at random.

    Returns:
        The bags, with cells that are as full as before. Bags that are small enough stay as they are.

    Raises:
        TypeError: ``bag`` is no bag, or a number no integer.
        ValueError: ``max_tokens`` is less than 1.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag
        >>> from disentangled_mil.bags import thin
        >>> coords = torch.cartesian_prod(torch.arange(40), torch.arange(40))
        >>> part = thin(Bag.from_slide(torch.randn(1600, 8), coords), 100)
        >>> part.patches.shape, part.grid.shapes
        (torch.Size([1, 100, 8]), ((11, 11),))
    """
    check_type("bag", bag, Bag, "a Bag")
    check_count("max_tokens", max_tokens)
    check_count("seed", seed, minimum=0)
    if bag.patches.shape[1] <= max_tokens:
        return bag
    return collate_bags(_thin_one(bag, row, max_tokens, seed) for row in range(len(bag)))


def _thin_one(bag: Bag, row: int, max_tokens: int, seed: int) -> Bag:
    """One bag of a batch, thinned."""
    placed = isinstance(bag.grid, Grid)
    real = bag.mask[row].nonzero()[:, 0]
    if not len(real):
        return Bag.empty(bag.patches.shape[2], placed=placed).to(bag.patches.device)
    cells = bag.grid.cells[row, real] if isinstance(bag.grid, Grid) else None
    rows = spread_rows(len(real), max_tokens, cells, seed).to(real.device)
    patches = bag.patches[row, real[rows]][None]
    if cells is None:
        return Bag(patches, TokenSet.of(len(rows), device=patches.device))
    step = widening(len(real), len(rows))
    return Bag(patches, Grid.from_coords(cells[rows], mask=bag.mask[row, real[rows]], step=step))


def widening(count: int, kept: int) -> float:
    """The factor by which the side of a cell grows where some of ``count`` tokens are kept."""
    check_count("count", count)
    check_count("kept", kept)
    return float((count / kept) ** 0.5)


def _z_order(coords: Tensor) -> Tensor:
    """Position of every token along the Z curve: the bits of column and row, alternating."""
    relative = coords.double() - coords.double().amin(0)
    cells = (relative * ((2**_BITS - 1) / relative.max().clamp(min=1e-300))).long()
    order = torch.zeros(len(coords), dtype=torch.int64)
    for bit in range(_BITS):
        for axis in (0, 1):
            order |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return order
