"""The map of one slide: its tiles, and numbers for each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import cast

import pandas as pd
import torch
from torch import Tensor

from .._checks import check_mapping, check_shape, check_texts, check_type


@dataclass(frozen=True, eq=False)
class TileMap:
    """Tiles of a slide, with columns of numbers. NaN stands where a column has no number for a tile.

    Args:
        coords: upper left corner (x, y) of every tile.
        size: side of every tile in the unit of the coordinates.
        columns: numbers for every tile, by name.
        classes: columns that are classes of tiles, such as the subspaces of a student.
        labels: class of every tile, as its place in ``classes``, -1 for none; by default that of the largest column.
        unit: unit of the coordinates, such as ``"level-0 pixels"``.
        unit_um: micrometers per unit of the coordinates, if they are known.

    Shape:
        ``coords`` [N, 2] with N >= 1, ``size`` [N], every column [N], ``labels`` [N].

    Raises:
        ValueError: shapes disagree, there is no tile, a side is not positive, or a class is no column.

    Example:
        >>> import torch
        >>> from disentangled_mil.explain import TileMap
        >>> coords, size = torch.tensor([[0, 0], [448, 0]]), torch.tensor([448, 448])
        >>> columns = {"tumor": torch.tensor([1.0, 0.0]), "tme": torch.tensor([0.0, 1.0])}
        >>> print(TileMap(coords, size, columns, ("tumor", "tme")).table().to_string(index=False))
         x  y  size class  tumor  tme
         0  0   448 tumor    1.0  0.0
        448 0   448   tme    0.0  1.0
    """

    coords: Tensor
    size: Tensor
    columns: Mapping[str, Tensor]
    classes: Sequence[str] = ()
    labels: Tensor = field(default=cast(Tensor, None))
    unit: str | None = None
    unit_um: float | None = None

    def __post_init__(self) -> None:
        sizes = check_shape("coords", self.coords, "N 2")
        check_shape("size", self.size, "N", sizes)
        check_mapping("columns", self.columns)
        check_texts("classes", self.classes)
        for name in ("unit", "unit_um"):
            if getattr(self, name) is not None:
                kind, what = (str, "text") if name == "unit" else (Real, "a number")
                check_type(name, getattr(self, name), kind, f"{what} or None")
        for name, values in self.columns.items():
            check_shape(f"columns[{name!r}]", values, "N", sizes)
        if not sizes["N"]:
            raise ValueError("coords must hold at least one tile, got none")
        if not (self.size > 0).all():
            raise ValueError(f"size must be positive, got {self.size.min().item()}")
        if unknown := [name for name in self.classes if name not in self.columns]:
            raise ValueError(f"classes must be among the columns {', '.join(self.columns)}, got {unknown[0]!r}")
        if self.labels is None:
            object.__setattr__(self, "labels", self._largest())
        check_shape("labels", self.labels, "N", sizes)

    def __len__(self) -> int:
        return len(self.coords)

    def table(self) -> pd.DataFrame:
        """One row per tile: ``x``, ``y``, ``size``, ``class`` if there are classes, and the columns."""
        x, y = self.coords.cpu().unbind(1)
        content: dict[str, object] = {"x": x.numpy(), "y": y.numpy(), "size": self.size.cpu().numpy()}
        if self.classes:
            names = (*self.classes, "")
            content["class"] = [names[label] for label in self.labels.tolist()]
        return pd.DataFrame(content | {name: values.cpu().numpy() for name, values in self.columns.items()})

    def _largest(self) -> Tensor:
        """The class of the largest column for every tile; the first of equal ones, and -1 where none is positive."""
        if not self.classes:
            return torch.full((len(self),), -1)
        best, label = torch.stack([self.columns[name] for name in self.classes]).nan_to_num(-torch.inf).max(0)
        return label.where(best > 0, -1)
