"""Random bags on lattices with holes, as bags and as the tensors of an exported student."""

from collections.abc import Sequence

import torch
from torch import Tensor

from disentangled_mil import Bag, Student, collate_bags

SIDE = 224.0


def placed_samples(
    student: Student, counts: Sequence[Sequence[int]], seed: int, *, coordinates: bool
) -> tuple[dict[str, Bag], dict[str, Tensor]]:
    """Bags with given numbers of patches, and the same as tensors, whose padding holds NaN.

    Args:
        student: student that takes them.
        counts: numbers of patches per bag, for every magnification; 0 for a bag that lacks it.
        seed: seed of features and places.
        coordinates: whether patches have places.

    Returns:
        Bags by magnification, and tensors by the names of their inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    bags, tensors = {}, dict[str, Tensor]()
    width = student.arguments["features"]
    for name, numbers in zip(student.magnifications, counts, strict=True):
        longest = max(1, *numbers)
        patches, coords = (
            torch.full((len(numbers), longest, width), torch.nan),
            torch.full((len(numbers), longest, 2), 7.0),
        )
        mask = torch.arange(longest) < torch.tensor(numbers)[:, None]
        several = []
        for bag, count in enumerate(numbers):
            columns = int(torch.randint(1, 2 + int(2 * count**0.5), (), generator=generator))
            area = columns * (-(-count // columns) + int(torch.randint(0, 4, (), generator=generator)))
            cell = torch.randperm(area, generator=generator)[:count]
            patches[bag, :count] = torch.randn(count, width, generator=generator)
            coords[bag, :count] = SIDE * torch.stack([cell % columns, cell // columns], dim=-1) + 100
            place = {"coords": coords[bag, :count], "step": SIDE} if coordinates else {}
            several.append(
                Bag.from_slide(patches[bag, :count], **place) if count else Bag.empty(width, placed=coordinates)
            )
        bags[name] = collate_bags(several)
        tensors |= {f"patches_{name}": patches, f"mask_{name}": mask}
        if coordinates:
            tensors |= {f"coords_{name}": coords.double(), f"step_{name}": torch.full([len(numbers)], SIDE).double()}
    return bags, tensors
