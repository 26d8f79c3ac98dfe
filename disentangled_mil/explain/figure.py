"""Pictures of a map on the tissue: classes and numbers of tiles, with legend, scale and scale bar."""

import warnings
from collections.abc import Sequence
from math import floor, log10
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from .._checks import as_path, check_texts, check_type
from .._colors import CLASSES, NO_CLASS, NUMBERS
from .._files import replacing
from .thumbnail import Thumbnail
from .tile_map import TileMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = 4.6  # inches, of the longer side of a panel
_BELOW = 1.0  # inches, for the title of a panel, and for its legend or scale of colors
_LINE = 0.18  # inches, of a line of the title
_SHOWN = 0.99  # Share of the tiles whose numbers the scale of colors spans; the rest is cut off, and said so.
_MANY = 100  # Of fewer tiles, none is cut off.
_EVEN = 1e-3  # Numbers that differ by less, relative to the largest, are called even.


@rc_context({"text.parse_math": False})  # Names may hold a dollar sign.
def draw_map(
    path: str | Path,
    tiles: TileMap,
    columns: Sequence[str],
    *,
    title: str,
    scale: str = "1 = even attention",
    thumbnail: Thumbnail | None = None,
) -> None:
    """Draw the classes of the tiles, and one panel per column, on the tissue.

    Colors are those of Okabe and Ito for classes, and viridis for numbers. They differ for color-blind readers. In a
    gray print, numbers and the first three classes differ. The scale of numbers begins at 0. The highest 1 % may be cut
    off, which the picture says. If all numbers of a column are alike, picture and a warning say so.

    Args:
        path: file of the picture; its suffix chooses the format.
        tiles: map to draw.
        columns: columns to draw; the first panel shows the classes, if there are any.
        title: title above the picture.
        scale: meaning of the numbers, which is written at their colors.
        thumbnail: picture of the slide, as a panel of its own and behind the tiles, which must then lie in level-0
            pixels; gray tissue by default.

    Raises:
        ValueError: a column is unknown, there is nothing to draw, or there are more classes than colors.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from disentangled_mil.explain import TileMap, draw_map
        >>> path = Path(tempfile.mkdtemp()) / "slide.png"
        >>> columns = {"attention": torch.tensor([0.5, 1.5])}
        >>> tiles = TileMap(torch.tensor([[0, 0], [448, 0]]), torch.tensor([448, 448]), columns)
        >>> draw_map(path, tiles, ["attention"], title="slide")
        >>> path.stat().st_size > 1000
        True
    """
    path = as_path("path", path)
    check_type("tiles", tiles, TileMap, "a TileMap")
    columns = check_texts("columns", columns)
    check_type("title", title, str, "text")
    check_type("scale", scale, str, "text")
    if thumbnail is not None:
        check_type("thumbnail", thumbnail, Thumbnail, "a Thumbnail or None")
    if unknown := [name for name in columns if name not in tiles.columns]:
        raise ValueError(f"columns must be among {', '.join(tiles.columns)}, got {unknown[0]!r}")
    if len(tiles.classes) > len(CLASSES):
        raise ValueError(f"tiles must have at most {len(CLASSES)} classes, got {len(tiles.classes)}")
    panels = (thumbnail is not None) + bool(tiles.classes) + len(columns)
    if not panels:
        raise ValueError("columns must name at least one column of a map without classes, got none")
    left, top, right, bottom = _extent(tiles, thumbnail)
    width, height = right - left, bottom - top
    longer = max(width, height)
    size = _PANEL * max(width / longer, 0.6), _PANEL * max(height / longer, 0.3) + _BELOW
    rows, across = (panels, 1) if width > 1.5 * height else (1, panels)  # Wide slides lie one below the other.
    figure = Figure(figsize=(max(size[0] * across, 5.0), size[1] * rows + 0.6), layout="constrained")
    axes = iter(np.ravel(figure.subplots(rows, across)))
    if thumbnail is not None:
        panel = next(axes)
        _tissue(panel, tiles, thumbnail)
        panel.set_title("slide", fontsize=10)
    if tiles.classes:
        panel = next(axes)
        _tissue(panel, tiles, thumbnail)
        _classes(panel, tiles)
    for name in columns:
        panel = next(axes)
        _tissue(panel, tiles, thumbnail)
        _numbers(figure, panel, tiles, name, scale, title)
    lines = wrap(f"{title}, {len(tiles):,} tiles", int(12 * figure.get_figwidth()))
    figure.text(0.5, 0.995, "\n".join(lines), ha="center", va="top", fontsize=9)
    share = 1 - _LINE * (len(lines) + 2) / figure.get_figheight()  # of the height, below the title
    figure.set_layout_engine("constrained", rect=(0, 0.02, 1, share - 0.02))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")


def _extent(tiles: TileMap, thumbnail: Thumbnail | None) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is drawn: the tiles, and a tile of tissue around them within the slide."""
    left, top = tiles.coords.double().amin(0).tolist()
    right, bottom = (tiles.coords.double() + tiles.size[:, None]).amax(0).tolist()
    if thumbnail is None:
        return left, top, right, bottom
    side = float(tiles.size.max())
    rows, columns = (thumbnail.scale * pixels for pixels in thumbnail.pixels.shape[:2])
    return (
        min(left, max(0.0, left - side)),
        min(top, max(0.0, top - side)),
        max(right, min(columns, right + side)),
        max(bottom, min(rows, bottom + side)),
    )


def _tissue(axes: "Axes", tiles: TileMap, thumbnail: Thumbnail | None) -> None:
    """The tissue behind the tiles, and the scale bar below it."""
    left, top, right, bottom = _extent(tiles, thumbnail)
    if thumbnail is None:
        axes.add_collection(PolyCollection(_squares(tiles), facecolors="#dddddd", edgecolors="none", antialiased=False))
    else:
        rows, columns = thumbnail.pixels.shape[:2]
        extent = (0, columns * thumbnail.scale, rows * thumbnail.scale, 0)
        axes.imshow(thumbnail.pixels, extent=extent, interpolation="antialiased")
    edge = 0.02 * max(right - left, bottom - top)
    _scale_bar(axes, tiles, left, bottom + 2 * edge, max(right - left, bottom - top))
    axes.set_xlim(left - edge, right + edge)
    axes.set_ylim(bottom + 6 * edge, top - edge)  # y grows downward, as on the slide
    axes.set_aspect("equal", anchor="N")  # so that panels with and without a scale of colors are level
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _classes(axes: "Axes", tiles: TileMap) -> None:
    """Tiles in the color of their class, and a legend with the share of each class."""
    colors = np.array([*CLASSES[: len(tiles.classes)], NO_CLASS])
    axes.add_collection(
        PolyCollection(_squares(tiles), facecolors=colors[tiles.labels.numpy()], edgecolors="none", antialiased=False)
    )
    area = tiles.size.double() ** 2
    shares = [float(area[tiles.labels == place].sum() / area.sum()) for place in range(len(tiles.classes))]
    handles = [
        Patch(color=color, label=f"{name} ({share:.0%})")
        for color, name, share in zip(CLASSES, tiles.classes, shares, strict=False)
    ]
    if (tiles.labels < 0).any():
        handles.append(Patch(color=NO_CLASS, label="none"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=min(3, len(handles)),
        frameon=False,
        fontsize=9,
    )
    axes.set_title("prototype of each tile", fontsize=10)


def _numbers(figure: Figure, axes: "Axes", tiles: TileMap, name: str, scale: str, title: str) -> None:
    """Tiles in the color of their number, and the scale of colors."""
    values = tiles.columns[name].double()
    known = values[values.isfinite()]
    words, text = name.replace("_", " "), scale
    if not len(known):
        text = "no numbers"
        warnings.warn(f"{title}: {words} has no number for any tile, so its map is gray", stacklevel=3)
        top = 1.0
    elif float(known.max() - known.min()) <= _EVEN * float(known.abs().max()):
        text = f"{scale}; even: all tiles have {float(known.mean()):.3g}"
        warnings.warn(
            f"{title}: {words} is {float(known.mean()):.3g} on all tiles, so its map has one color", stacklevel=3
        )
        top = 2 * float(known.abs().max()) or 1.0
    else:
        top = float(torch.quantile(known[known > 0], _SHOWN if len(known) >= _MANY else 1.0)) or 1.0
    cut = bool((known > top * (1 + _EVEN)).any())
    present = values.isfinite()
    squares = PolyCollection(
        _squares(tiles, present), array=values[present].numpy(), cmap=NUMBERS, edgecolors="none", antialiased=False
    )
    squares.set_clim(0, top)
    axes.add_collection(squares)
    axes.set_title(words, fontsize=10)
    bar = figure.colorbar(
        squares, ax=axes, location="bottom", shrink=0.8, aspect=30, panchor=False, extend="max" if cut else "neither"
    )
    most = f"; largest {float(known.max()):.3g}" if cut else ""
    bar.set_label(text + most, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _squares(tiles: TileMap, chosen: Tensor | None = None) -> list[NDArray[np.float64]]:
    """The corners [4, 2] of every tile."""
    corner, side = tiles.coords.double().cpu(), tiles.size.double().cpu()
    if chosen is not None:
        corner, side = corner[chosen], side[chosen]
    unit = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    return list((corner[:, None] + side[:, None, None] * unit).numpy())


def _scale_bar(axes: "Axes", tiles: TileMap, left: float, y: float, width: float) -> None:
    """A bar of a round length, at most a quarter of the width, and its length in words."""
    unit_um = tiles.unit_um or 1.0
    length = width * unit_um / 4
    power = 10.0 ** floor(log10(length))
    rounded = power * max(step for step in (1, 2, 5) if step * power <= length)
    if tiles.unit_um is None:
        text = f"{rounded:,.6g} {tiles.unit or 'units of the coordinates'}"
    else:
        text = f"{rounded / 1000:g} mm" if rounded >= 1000 else f"{rounded:g} µm"
    axes.plot([left, left + rounded / unit_um], [y, y], color="black", linewidth=2.5, solid_capstyle="butt")
    axes.text(left + rounded / unit_um + 0.02 * width, y, text, fontsize=8, va="center")
