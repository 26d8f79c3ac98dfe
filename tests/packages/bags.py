"""Bags with a class that is easy to learn, for the trainers of others."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

FEATURES, DIM = 6, 8


class Bags(Dataset):
    """Bags of unequal length whose first feature tells the class, as dictionaries."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(4, 12, (count,), generator=generator).tolist()
        self.labels = torch.arange(count) % 2
        self.bags = [torch.randn(size, FEATURES, generator=generator) for size in sizes]
        for bag, label in zip(self.bags, self.labels, strict=True):
            bag[:, 0] += 3 * label

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"X": self.bags[row], "Y": self.labels[row].float(), "genes": self.bags[row].mean(0)[None, :5]}
