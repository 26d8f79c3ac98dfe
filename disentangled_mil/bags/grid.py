"""The grid on which the tokens of a slide lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from numbers import Real
from typing import Any, ClassVar, cast

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from .._checks import check_flag, check_mask, check_shape, check_size, check_type
from .._collection import BatchCollection
from .._operators import operator
from .._precision import widened
from ._cells import cells_of_bag, warn_of_padding
from ._counts import mask_of


@dataclass(frozen=True, eq=False)
class Grid(BatchCollection, parts=("cells", "mask", "count", "nearest", "sizes"), constants=("shapes", "full")):
    """Where the tokens of a batch of bags lie: one integer cell (column, row) per token.

    Every bag has a rectangle of its own, with holes where there is no tissue. Several tokens may share a cell. Build a
    grid once per batch with :meth:`from_coords`, :meth:`square` or :meth:`from_mask`, and give it to every layer.
    Values are read when the grid is built and never in the forward of a layer, so that a layer is one compiled graph:
    build the grid outside of compiled regions.

    Args:
        cells: column and row of the cell of every token, counted from the upper left corner of its bag; 0 for padding.
        mask: mask of the tokens (True = real token).
        shapes: (width, height) of the rectangle of every bag, in cells.
        full: flag that says that all bags have one size and fill it row by row: token n lies on cell n in every bag.
            Computed if not given.
        count: number of tokens in every cell of the canvas, row by row. Computed if not given.
        nearest: flat index of the occupied cell nearest to every cell of the canvas; occupied cells, and cells of a bag
            without tokens, have their own index. Computed on the CPU if not given.
        sizes: tensor of ``shapes``. Made if not given.

    Shape:
        ``cells`` [B, N, 2] int64, ``mask`` [B, N] bool, ``shapes`` B pairs, ``count`` and ``nearest`` [B, H * W],
        ``sizes`` [B, 2] int64.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: the shapes do not fit together.
        RuntimeError: ``full`` is not given in a compiled region, and shapes alone do not decide it.

    Source:
        The paper lays 2,500 patches out as 50 x 50.

    Differs from the source:
        True coordinates, any rectangle, holes, unequal bags.

    Example:
        >>> import torch
        >>> from disentangled_mil import Grid
        >>> coords = torch.tensor([[0, 0], [448, 0], [0, 224]])  # upper left corners in pixels
        >>> grid = Grid.from_coords(coords, step=224)
        >>> grid.cells[0].tolist(), grid.shapes
        ([[0, 0], [2, 0], [0, 1]], ((3, 2),))
    """

    #: Whether ``shapes`` holds one pair, that of the canvas, as in a program that takes bags of any size.
    only_canvas: ClassVar[bool] = False
    _rows = ("cells", "mask", "sizes")

    cells: Tensor
    mask: Tensor
    shapes: tuple[tuple[int, int], ...]
    #: Whether all bags have one size and fill it row by row, so that token n lies on cell n in every bag.
    full: bool = field(default=cast(bool, None), kw_only=True, repr=False)
    count: Tensor = field(default=cast(Tensor, None), kw_only=True, repr=False)
    nearest: Tensor = field(default=cast(Tensor, None), kw_only=True, repr=False)
    sizes: Tensor = field(default=cast(Tensor, None), kw_only=True, repr=False)

    def __post_init__(self) -> None:
        sizes = check_shape("cells", self.cells, "B N 2")
        if self.cells.dtype != torch.int64:
            raise TypeError(f"cells must be an int64 tensor, got {self.cells.dtype}")
        check_mask("mask", self.mask, "B N", sizes)
        check_type("shapes", self.shapes, Sequence, "a sequence of (width, height) pairs")
        for name in ("count", "nearest", "sizes"):
            if getattr(self, name) is not None:
                check_type(name, getattr(self, name), Tensor, "a tensor or None")
        if self.full is not None:
            check_flag("full", self.full)
        if len(self.shapes) != sizes["B"]:
            raise ValueError(f"shapes must hold B = {sizes['B']} (width, height) pairs, got {len(self.shapes)}")
        if sizes["B"] < 1 or sizes["N"] < 1:
            raise ValueError(
                "cells must hold at least one bag and one token per bag (masked out if the bag is empty), "
                f"got {list(self.cells.shape)}"
            )

        for shape in self.shapes:
            if not (isinstance(shape, tuple) and len(shape) == 2):
                raise TypeError(f"shapes must hold (width, height) pairs, got {shape!r}")
        if any(width < 1 or height < 1 for width, height in self.shapes):
            raise ValueError(f"shapes must be pairs of at least 1 x 1 cells, got {self.shapes}")
        if self.sizes is not None:
            check_shape("sizes", self.sizes, "B 2", sizes)
        else:
            object.__setattr__(self, "sizes", torch.tensor(self.shapes, device=self.cells.device))
        if self.cells.device.type == "cpu" and not torch.compiler.is_compiling():
            inside = ((self.cells >= 0) & (self.cells < self.sizes[:, None])).all(-1)
            if not inside[self.mask].all():
                raise ValueError("cells must lie inside of their bag's shape where mask is True, got some outside")
        if self.full is None:
            object.__setattr__(self, "full", self._is_full())
        if self.count is None:
            object.__setattr__(self, "count", self._tokens_per_cell())
        if self.nearest is None:
            sides = [] if self.full else [side for shape in self.shapes for side in shape]
            object.__setattr__(self, "nearest", _nearest(self.count > 0, self.width, self.height, sides))

    @classmethod
    def from_coords(cls, coords: Tensor, *, mask: Tensor | None = None, step: float | None = None) -> "Grid":
        """Lay tokens out by their true coordinates.

        The default side of a cell is a common gap between tokens, usually the most common one between neighbors in a
        row or column.

        Args:
            coords: (x, y) of every patch, in any unit (usually level-0 pixels of the upper left corner).
            mask: mask of the tokens (True = real token); by default all are real. Padded coordinates need it.
            step: side of one cell in the unit of ``coords``.

        Shape:
            ``coords`` [B, N, 2] or [N, 2] (one bag); ``mask`` [B, N] or [N].

        Returns:
            The grid; every bag begins at its upper left corner. A warning says if no mask is given and more than four
            tokens at the end of a bag lie on one place, as padding does.

        Raises:
            TypeError: ``coords`` are complex or bool, or ``step`` is no number.
            ValueError: a coordinate of a real token is not finite; ``step`` is not positive, or so large that more than
                128 different coordinates would share up to four cells; or the coordinates show no lattice, because gaps
                differ or cells would cover an area far larger than the tokens (jittered coordinates: give ``step``).
            RuntimeError: the region is compiled, where values are unknown.
        """
        _refuse_in_compiled_region("Grid.from_coords reads the coordinates")
        if isinstance(coords, Tensor) and coords.ndim == 2:
            coords = coords[None]
            mask = mask[None] if mask is not None and mask.ndim == 1 else mask
        sizes = check_shape("coords", coords, "B N 2")
        if coords.is_complex() or coords.dtype == torch.bool:
            raise TypeError(f"coords must be a tensor of real numbers, got {coords.dtype}")
        if mask is None:
            for bag in coords.cpu():
                warn_of_padding(bag)
            mask = torch.ones(coords.shape[:2], dtype=torch.bool, device=coords.device)
        check_mask("mask", mask, "B N", sizes)
        if step is not None:
            check_type("step", step, Real, "a number")
        if step is not None and not 0 < step < float("inf"):
            raise ValueError(f"step must be positive and finite, got {step}")
        rows = [cells_of_bag(c[m], step) for c, m in zip(coords.cpu().double(), mask.cpu(), strict=True)]
        cells = torch.zeros(coords.shape, dtype=torch.int64, device="cpu")
        for row, real, (bag, _) in zip(cells, mask.cpu(), rows, strict=True):
            row[real] = bag
        return cls(cells, mask.cpu(), tuple(shape for _, shape in rows)).to(coords.device)

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Grid":
        """Lay the real tokens of each bag, in their order, row by row on a square.

        Args:
            mask: mask of the tokens (True = real token).

        Shape:
            ``mask`` [B, N].

        Returns:
            A grid of ceil(sqrt(n)) columns for a bag of n real tokens; the rest of the square stays empty.

        Raises:
            RuntimeError: the region is compiled, where values are unknown.
        """
        check_mask("mask", mask, "B N")
        _refuse_in_compiled_region("Grid.from_mask reads the mask")
        return cls._squares(mask, mask.sum(1).tolist())

    @classmethod
    def _squares(cls, mask: Tensor, counts: Sequence[int]) -> "Grid":
        """A square for every bag, given the numbers of real tokens."""
        sides = [max(1, ceil(sqrt(count))) for count in counts]
        rank = (mask.cumsum(1) - 1).clamp(min=0)
        side = torch.tensor(sides, dtype=torch.int64, device=mask.device)[:, None]
        cells = torch.stack([rank % side, rank // side], dim=-1).masked_fill(~mask[..., None], 0)
        shapes = tuple((side, max(1, ceil(count / side))) for side, count in zip(sides, counts, strict=True))
        full = {*counts, *(width * height for width, height in shapes)} == {mask.shape[1]}
        return cls(cells, mask, shapes, full=full)

    @classmethod
    def square(cls, tokens: int | Sequence[int], *, device: torch.device | str | None = None) -> "Grid":
        """Lay tokens out in order, row by row, on a near-square, as the paper does without coordinates.

        Positions then follow the order of the tokens, and so do predictions. Without a grid, bags are sets instead.

        Args:
            tokens: number of tokens, or one number per bag.
            device: device of the grid.

        Returns:
            A grid of one bag for a number (layers use it for every bag of a batch), or of one bag per entry.

        Raises:
            TypeError: a number is not an integer.
            ValueError: a number is not positive.
        """
        return cls._squares(*mask_of(tokens, device))

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> "Grid":
        """The opposite of ``to_dict``, also after rows were taken or tensors were moved.

        Args:
            parts: tensors ``cells``, ``mask`` and ``sizes``.

        Returns:
            The grid. Its canvas is that of the bags that are left.

        Raises:
            TypeError: ``parts`` is no mapping, or a value is of the wrong type.
            ValueError: a name is missing or unknown, or shapes do not fit together.
            RuntimeError: the region is compiled, where values are unknown.
        """
        named = cls._named(parts)
        _refuse_in_compiled_region("Grid.from_dict reads the sizes")
        sizes: Any = named.get("sizes")
        check_shape("sizes", sizes, "B 2")
        return cls(named["cells"], named["mask"], tuple((width, height) for width, height in sizes.tolist()))

    @property
    def width(self) -> int:
        """Columns of the canvas that holds every bag of the batch."""
        return max(width for width, _ in self.shapes)

    @property
    def height(self) -> int:
        """Rows of the canvas that holds every bag of the batch."""
        return max(height for _, height in self.shapes)

    def expand(self, batch: int) -> "Grid":
        """The grid for a number of bags.

        Args:
            batch: number of bags.

        Returns:
            The grid itself, or the grid of one bag repeated.

        Raises:
            ValueError: the grid already has another number of bags.
        """
        check_size("batch", batch)
        if len(self.shapes) == batch:
            return self
        if len(self.shapes) != 1:
            raise ValueError(f"grid must have B = {batch} bags (or one for all), got {len(self.shapes)}")
        return Grid(
            self.cells.expand(batch, -1, -1),
            self.mask.expand(batch, -1),
            self.shapes * batch,
            full=self.full,
            count=self.count.expand(batch, -1),
            nearest=self.nearest.expand(batch, -1),
            sizes=self.sizes.expand(batch, -1),
        )

    def to_map(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Lay tokens out as maps; a cell holds the mean of its tokens, an empty cell zeros.

        Args:
            tokens: one vector per token; padding may hold anything.

        Shape:
            ``tokens`` [B, N, C].

        Returns:
            The map [B, H, W, C] and the number of tokens in each cell [B, H, W]. On a full grid the map is a view of
            the tokens.
        """
        batch, count = self.mask.shape
        sizes = check_shape("tokens", tokens, "B N C", {"B": batch, "N": count})
        shape = (batch, self.height, self.width)
        return self.cell_means(tokens[:, None]).reshape(*shape, sizes["C"]), self.count.view(shape)

    def cell_means(self, tokens: Tensor) -> Tensor:
        """The mean of the tokens in each cell, group by group of their channels; zeros in an empty cell.

        Args:
            tokens: one vector per group and token; padding may hold anything.

        Shape:
            ``tokens`` [B, G, N, C].

        Returns:
            [B, G, H * W, C], row by row of the map; on a full grid the tokens themselves.

        Example:
            >>> import torch
            >>> from disentangled_mil import Grid
            >>> grid = Grid.from_coords(torch.tensor([[0, 0], [2, 0]]), step=1)  # with a hole
            >>> grid.cell_means(torch.tensor([[[[1.0], [3.0]]]])).flatten().tolist()
            [1.0, 0.0, 3.0]
        """
        batch, count = self.mask.shape
        sizes = check_shape("tokens", tokens, "B G N C", {"B": batch, "N": count})
        if self.full:
            return tokens
        groups, channels, area = sizes["G"], sizes["C"], self.width * self.height
        cells = self._flat_cells()
        # Tokens are divided, not cells: a slide with holes has far more cells than tokens.
        together = self.count.clamp(min=1).gather(1, cells.clamp(max=area - 1))  # tokens in the same cell [B, N]
        real = widened(tokens) / together[:, None, :, None]
        first = area * torch.arange(batch * groups, device=real.device).view(batch, groups, 1)
        behind = batch * groups * area  # Padding goes to one more row.
        row = torch.where(self.mask[:, None], first + cells[:, None], behind)
        # Adding whole rows is faster than a scatter of channels, for more than about ten channels.
        means = real.new_zeros(behind + 1, channels).index_add_(0, row.flatten(), real.flatten(0, 2))
        return means[:behind].view(batch, groups, area, channels).to(tokens.dtype)

    def nearest_tissue(self, cell: Tensor) -> Tensor:
        """The occupied cell nearest to each of some cells; of equally near ones the leftmost, then the upper one.

        Args:
            cell: flat indices of cells of the canvas, with any number of rows per bag.

        Shape:
            ``cell`` [B * G, J] int64.

        Returns:
            Flat indices [B * G, J].
        """
        return self.nearest.repeat_interleave(cell.shape[0] // self.nearest.shape[0], dim=0).gather(1, cell)

    def _is_full(self) -> bool:
        if len(set(self.shapes)) > 1 or self.width * self.height != self.mask.shape[1]:
            return False
        _refuse_in_compiled_region("Grid reads cells and mask to find out whether it is full")
        index = self.cells[..., 1] * self.width + self.cells[..., 0]
        return bool((self.mask & (index == torch.arange(index.shape[1], device=index.device))).all())

    def _tokens_per_cell(self) -> Tensor:
        batch, area = len(self.shapes), self.width * self.height
        count = torch.zeros(batch, area + 1, device=self.mask.device)
        return count.scatter_add(1, self._flat_cells(), self.mask.to(count.dtype))[:, :area]

    def _flat_cells(self) -> Tensor:
        """The cell of every token on the flattened canvas [B, N]; padding lies on a cell behind the last one."""
        return torch.where(self.mask, self.cells[..., 1] * self.width + self.cells[..., 0], self.width * self.height)


@operator("nearest_tissue")
def _nearest(occupied: Tensor, width: int, height: int, sides: Sequence[int]) -> Tensor:
    """Find the occupied cell nearest to every cell.

    Args:
        occupied: mask of the cells [B, H * W] (True = cell with tokens).
        width: columns of the canvas.
        height: rows of the canvas.
        sides: width and height of every bag, one after the other; none if all bags are full.

    Returns:
        Flat indices [B, H * W].
    """
    nearest = torch.arange(width * height, device="cpu").repeat(len(occupied), 1)
    if sides:
        canvases = nearest.view(-1, height, width).numpy()
        tissues = occupied.view(-1, height, width).cpu().numpy()
        for canvas, tissue, columns, rows in zip(canvases, tissues, sides[::2], sides[1::2], strict=True):
            own = tissue[:rows, :columns]
            if own.any() and not own.all():
                y, x = distance_transform_edt(~own, return_distances=False, return_indices=True)
                canvas[:rows, :columns] = y * width + x
    return nearest.to(occupied.device)


@_nearest.register_fake
def _(occupied: Tensor, width: int, height: int, sides: Sequence[int]) -> Tensor:
    return torch.empty_like(occupied, dtype=torch.int64, memory_format=torch.contiguous_format)


def _refuse_in_compiled_region(reason: str) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{reason}: build the grid outside of a compiled region")
