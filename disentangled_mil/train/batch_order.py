"""The order of samples in training: random, with samples of similar size in one batch.

A batch is padded to its longest bag, and layers spend time on padding. Slides differ in size by a factor of 100, so in
random batches most tokens are padding. Therefore samples are shuffled, and each window of ``WINDOW`` batches is sorted
by size before it is cut into batches. The batches are shuffled at the end. So a batch has samples from a random part of
the cohort, in an order that depends on the generator alone. Small samples stay in random order, because their padding
costs little.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOW = 8
"""Batches among whose samples those of similar size are put together."""
SMALL = 1000
"""Tokens of the largest sample, over all magnifications, up to which the order is random."""


def batch_order(sizes: Sequence[int], batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Draw the batches of an epoch.

    Args:
        sizes: number of tokens of every sample.
        batch_size: samples per batch.
        generator: generator of the order.

    Returns:
        The samples of every batch, as indices; only one batch may be smaller than the others.

    Example:
        >>> import torch
        >>> from disentangled_mil.train.batch_order import batch_order
        >>> batches = batch_order([9, 5000, 8, 4000], 2, torch.Generator().manual_seed(0))
        >>> sorted(sorted(batch.tolist()) for batch in batches)
        [[0, 2], [1, 3]]
    """
    order = torch.randperm(len(sizes), generator=generator)
    if max(sizes) <= SMALL:
        return list(torch.split(order, batch_size))
    tokens = torch.tensor(sizes)
    batches: list[Tensor] = []
    for window in torch.split(order, WINDOW * batch_size):
        batches += torch.split(window[tokens[window].argsort()], batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
