"""Draw ``_generated/where_genes_look.png``: a planted slide, and where a DMSF layer looks on it."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from disentangled_mil import DMSF, Bag, Classification, PatchEncoder, SNNEncoder, SubspaceHead, collate_bags
from disentangled_mil.bags import Grid
from disentangled_mil.data.planted import planted_cohort
from disentangled_mil.nn import DeformableAttention

STEPS = 40
TITLES = {"tumor": "tumor genes", "tme": "TME genes"}


class Fusion(nn.Module):
    """Patches and genes of 20x slides -> diagnosis."""

    def __init__(self, features: int, genes: dict[str, int], outputs: int) -> None:
        super().__init__()
        self.patches = PatchEncoder(features, 32)
        self.genes = SNNEncoder(genes, 32, gene_tokens=4, dropout=0.0)
        self.fuse = DMSF(32, tuple(genes), heads=4, groups=4, dim_head=8, selection_heads=4, dropout=0.0)
        self.head = SubspaceHead(32, outputs, tuple(genes))

    def forward(self, bag: Bag, genes: dict[str, Tensor]) -> tuple[Tensor, dict[str, DeformableAttention]]:
        fused = self.fuse(self.patches(bag.patches, bag.mask), self.genes(genes), bag.grid)
        return self.head(fused.features).logits, fused.attention


def draw(path: Path) -> None:
    """Train for a moment, and draw one slide that was not trained on."""
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    torch.manual_seed(0)
    planted = planted_cohort(41, seed=21, grid=(10, 9))
    cohort = planted.cohort
    *training, shown = [next(s for s in cohort.samples if s.patient == patient) for patient in cohort.patients]
    pipeline = cohort.subset([sample.patient for sample in training]).fit_expression()
    expression = {s: values[:-1] for s, values in pipeline.transform(cohort.expression).items()}
    labels = cohort.clinical["diagnosis"].tolist()
    task = Classification.fit(labels[:-1])
    target = task.target(labels[:-1])
    bags = [sample.load()["20x"] for sample in training]

    model = Fusion(cohort.width, pipeline.sizes, task.outputs)
    model.patches.fit(torch.cat([bag.patches[0] for bag in bags]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        chosen = torch.randperm(len(bags))[:8]
        logits, _ = model(collate_bags([bags[i] for i in chosen]), {s: v[chosen] for s, v in expression.items()})
        optimizer.zero_grad()
        task.loss(logits, target[chosen]).backward()
        optimizer.step()

    model.eval()
    bag = shown.load()["20x"]
    genes = {s: values[-1:] for s, values in pipeline.transform(cohort.expression).items()}
    with torch.no_grad():
        _, attention = model(bag, genes)
        panels = {name: _points_and_mass(lazy) for name, lazy in attention.items()}
    _figure(path, bag.grid, planted.regions[shown.name]["20x"], panels)


def _points_and_mass(attention: DeformableAttention) -> tuple[Tensor, Tensor]:
    """Sampling positions of all groups [points, 2] and the mass on each patch [N], of one slide."""
    return attention.sampling_positions[0].flatten(0, 1), attention.mass()[0]


def _figure(path: Path, grid: Grid, tumor: Tensor, panels: dict[str, tuple[Tensor, Tensor]]) -> None:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(panels))
    _map(axes[0], grid, tumor.float(), "Oranges", (-0.3, 1.3))
    axes[0].set_title("truth: tumor nests, stroma", fontsize=10)
    for panel, (name, (points, mass)) in zip(axes[1:], panels.items(), strict=True):
        share = len(mass) * mass  # 1 = the mass under even attention
        picture = _map(panel, grid, share, "viridis", (0, float(share.quantile(0.98))))
        panel.plot(*points.T, "o", color="white", markeredgecolor="black", markersize=2.5, markeredgewidth=0.4)
        on_tumor = float(mass[tumor].sum())
        panel.set_title(f"{TITLES[name]}: {on_tumor:.0%} of the attention on tumor", fontsize=10)
        figure.colorbar(picture, ax=panel, shrink=0.8)
    figure.supxlabel(f"tumor is {float(tumor.float().mean()):.0%} of the tissue; dots: sampling positions", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _map(axes: Axes, grid: Grid, values: Tensor, colors: str, limits: tuple[float, float]):
    """One value per patch, laid out on the slide; no tissue stays white."""
    picture = torch.full((grid.height, grid.width), torch.nan)
    x, y = grid.cells[0].T
    picture[y, x] = values
    axes.set_axis_off()
    return axes.imshow(picture, cmap=colors, vmin=limits[0], vmax=limits[1], interpolation="nearest")


if __name__ == "__main__":
    draw(Path(__file__).parent / "_generated" / "where_genes_look.png")
