"""How far gradients of a teacher under autocast are from those in float32: python -m benchmarks.precision

The teacher has random weights, random patches and random genes, and no dropout. An error is the norm of the difference
over the norm of the gradient in float32, over all parameters. Rows are the loss of the task and the consistency of two
magnifications; columns are median and range over seeds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled_mil import Bag, Teacher, collate_bags, inter_magnification_consistency

SEEDS = 12
LOSSES = ("task", "consistency")
TYPES = (torch.bfloat16, torch.float16)
# Of the loss, so that no gradient of float16 vanishes, as torch.amp.GradScaler does it.
_SCALE = 1024.0
_BAGS, _WIDTH, _GENES = 8, 64, {"tumor": 30, "tme": 40}


def gradient(loss: str, seed: int, dtype: torch.dtype | None, *, full: bool) -> Tensor:
    """The gradient of all parameters of a teacher as one vector.

    Args:
        loss: ``"task"`` or ``"consistency"``.
        seed: seed of weights and inputs.
        dtype: type of autocast; None for float32.
        full: whether bags fill one square, so that maps are compared entry by entry.

    Returns:
        The gradient in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sizes = {"dim": 32, "heads": 4, "groups": 4, "dim_head": 8}
    teacher = Teacher(_WIDTH, _GENES, 4, dropout=0.0, gene_dropout=0.0, **sizes)
    bags = {name: _bags(side, generator, full) for name, side in {"10x": 10, "20x": 10 if full else 20}.items()}
    genes = {name: torch.randn(_BAGS, count, generator=generator) for name, count in _GENES.items()}
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = teacher(bags, genes)
        if loss == "task":
            value = F.cross_entropy(output.logits.float(), torch.arange(_BAGS) % 4)
        else:
            value = inter_magnification_consistency(*(branch.attention for branch in output.branches.values()))
    (_SCALE * value).backward()
    return torch.cat([p.grad.double().flatten() / _SCALE for p in teacher.parameters() if p.grad is not None])


def error(loss: str, seed: int, dtype: torch.dtype, *, full: bool) -> float:
    """The relative error of a gradient under autocast."""
    exact = gradient(loss, seed, None, full=full)
    return float((gradient(loss, seed, dtype, full=full) - exact).norm() / exact.norm())


def _bags(side: int, generator: torch.Generator, full: bool) -> Bag:
    coords = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    bags = []
    for _ in range(_BAGS):
        places = coords if full else coords[torch.rand(len(coords), generator=generator) < 0.8]
        bags.append(Bag.from_slide(torch.randn(len(places), _WIDTH, generator=generator), places))
    return collate_bags(bags)


def main() -> None:
    """Print the table."""
    print("| bags | loss | autocast | median | range |\n| --- | --- | --- | --- | --- |")
    for full in (True, False):
        for loss in LOSSES:
            for dtype in TYPES:
                errors = torch.tensor([error(loss, seed, dtype, full=full) for seed in range(SEEDS)])
                low, high = float(errors.min()), float(errors.max())
                name = "full squares" if full else "with holes"
                print(f"| {name} | {loss} | {str(dtype)[6:]} | {errors.median():.1%} | {low:.1%} to {high:.1%} |")


if __name__ == "__main__":
    main()
