"""What slides of very different size cost in training: python -m benchmarks.large_slides

Simulated slides have 125 to 28,000 tokens on round tissue, and at most 4,000 of them are read. Rows are the processor
time of one pass of teacher and student, forward, backward and step, on one thread. First the cells of thinned slides
stay as they were, or grow as ``thin`` lets them. Then batches are random, or hold samples of similar size.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled_mil import Bag, Student, Teacher, collate_bags
from disentangled_mil.bags import spread_rows, thin
from disentangled_mil.train import TrainingOptions
from disentangled_mil.train.batch_order import batch_order

WIDTH, GENES, SLIDES, BATCH = 24, {"tumor": 400, "tme": 235}, 64, 16


def tissue(count: int) -> Tensor:
    """Cells that fill a disk [count, 2]."""
    side = int((count * 4 / torch.pi) ** 0.5) + 2
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    near = (cells - (side - 1) / 2).square().sum(1).argsort()[:count].sort().values
    return cells[near]


def slide(count: int, generator: torch.Generator) -> Bag:
    """A slide whose tokens fill a disk."""
    return Bag.from_slide(torch.randn(count, WIDTH, generator=generator), tissue(count), step=1)


def thinned_without_growth(bag: Bag, most: int) -> Bag:
    """A part of the tokens on the cells of the whole slide."""
    places = bag.grid.cells[0]  # type: ignore[union-attr]
    rows = spread_rows(len(places), most, places, 0)
    return Bag.from_slide(bag.patches[0, rows], places[rows], step=1)


def seconds(model: Teacher | Student, bags: Sequence[Bag], batches: Sequence[Tensor]) -> float:
    """Processor time of one pass over the bags."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    genes = {name: torch.zeros(BATCH, count) for name, count in GENES.items()}
    start = time.process_time()
    for rows in batches:
        batch = {"20x": collate_bags([bags[row] for row in rows.tolist()])}
        own = {name: values[: len(rows)] for name, values in genes.items()}
        logits = model(batch, own).logits if isinstance(model, Teacher) else model(batch).logits
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64)).backward()
        optimizer.step()
    return time.process_time() - start


def sizes() -> dict[str, Any]:
    """Arguments of teacher and student in the reference training."""
    options = TrainingOptions()
    heads = {"heads": options.heads, "groups": options.heads, "dim_head": options.dim_head}
    return {"dim": options.dim, **heads, "dropout": options.dropout, "magnifications": ("20x",)}


def models() -> dict[str, Teacher | Student]:
    """Teacher and student of the sizes of the reference training."""
    return {"teacher": Teacher(WIDTH, GENES, 4, **sizes()), "student": Student(WIDTH, 4, **sizes())}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    counts = [round(125 * 224 ** float(torch.rand((), generator=generator))) for _ in range(SLIDES)]
    whole = [slide(count, generator) for count in counts]
    print("| what changes | tokens at most | model | before | after | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for most in (4000, 1000, 500):
        apart = [thinned_without_growth(bag, most) for bag in whole]
        grown = [thin(bag, most) for bag in whole]
        order = batch_order([bag.patches.shape[1] for bag in grown], BATCH, torch.Generator().manual_seed(0))
        for name, model in models().items():
            _row("cells grow", most, name, seconds(model, apart, order), seconds(model, grown, order))
    read = [thin(bag, 4000) for bag in whole]
    random = list(torch.split(torch.randperm(SLIDES, generator=generator), BATCH))
    order = batch_order([bag.patches.shape[1] for bag in read], BATCH, torch.Generator().manual_seed(0))
    for name, model in models().items():
        _row("batches of similar size", 4000, name, seconds(model, read, random), seconds(model, read, order))


def _row(what: str, most: int, name: str, before: float, after: float) -> None:
    print(f"| {what} | {most:,} | {name} | {before:.1f} s | {after:.1f} s | 1/{before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
