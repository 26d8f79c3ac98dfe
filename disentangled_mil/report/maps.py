"""Maps over a slide: the true regions beside a student's prototypes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from .._checks import check_shape
from .._colors import CLASSES, rgb
from .._files import replacing
from ..bags import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def prototype_map(
    path: str | Path, grid: Grid, truth: Tensor, assignment: Tensor, *, subspaces: Sequence[str], title: str
) -> None:
    """Draw the true regions of a slide beside the student's prototypes.

    Args:
        path: file of the picture; its suffix chooses the format.
        grid: grid of the slide's patches (one bag).
        truth: true subspace of each patch.
        assignment: prototype of each patch; -1 where it has none.
        subspaces: names of the subspaces, in order.
        title: title above the picture.

    Shape:
        ``truth`` [N], ``assignment`` [N].

    Raises:
        ValueError: the grid is of several bags, shapes disagree, or there are more subspaces than colors.
    """
    sizes = check_shape("grid.mask", grid.mask, "1 N")
    check_shape("truth", truth, "N", sizes)
    check_shape("assignment", assignment, "N", sizes)
    if len(subspaces) > len(CLASSES):
        raise ValueError(f"subspaces must be at most {len(CLASSES)}, got {len(subspaces)}")
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    agreement = float((truth == assignment)[grid.mask[0].cpu()].float().mean())
    _draw(panels[0], grid, truth, "true regions")
    _draw(panels[1], grid, assignment, f"student's prototypes ({agreement:.0%} of patches agree)")
    handles = [Patch(color=color, label=name) for color, name in zip(CLASSES, subspaces, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(subspaces), frameon=False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix.lstrip(".") or "png")


def _draw(axes: "Axes", grid: Grid, labels: Tensor, title: str) -> None:
    """One panel: a colored cell per patch on white."""
    picture = np.ones((grid.height, grid.width, 3))
    palette = np.array([rgb(color) for color in CLASSES]) / 255
    real = grid.mask[0].cpu() & (labels.cpu() >= 0)
    x, y = grid.cells[0].cpu()[real].numpy().T
    picture[y, x] = palette[labels.cpu()[real].numpy()]
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
