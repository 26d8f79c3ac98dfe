"""From numbers of tokens to a mask."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .._checks import check_count


def mask_of(tokens: int | Sequence[int], device: torch.device | str | None) -> tuple[Tensor, list[int]]:
    """The mask [B, N] of bags whose real tokens come first, and their numbers as a list."""
    counts = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if not counts:
        raise ValueError("tokens must hold the number of tokens of at least one bag, got none")
    for count in counts:
        check_count("tokens", count)
    mask = torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]
    return mask, counts
