"""Dropout of attention weights that the backward pass repeats without having stored it."""

import torch
from torch import Tensor


class Dropout:
    """The weights of one bag that are dropped, drawn tile by tile in the same order in every pass.

    Args:
        probability: probability of dropping a weight.
        seed: seed of the operator's call; None where nothing is dropped.
        bag: index of the bag, which makes its draws its own.
        device: device of the weights.

    Attributes:
        scale: factor of the weights that stay.
    """

    def __init__(self, probability: float, seed: Tensor | None, bag: int, device: torch.device) -> None:
        self.probability = probability
        self.scale = 1 / (1 - probability) if probability < 1 else 0.0
        self.generator = None if seed is None else torch.Generator(device).manual_seed(int(seed) + bag)

    def draw(self, weights: Tensor) -> Tensor | None:
        """One for each weight of the next tile that stays, zero for the others; None where none is dropped."""
        if self.generator is None:
            return None
        draws = torch.rand(weights.shape, generator=self.generator, dtype=weights.dtype, device=weights.device)
        return draws.ge_(self.probability)


def thinned(weights: Tensor, stays: Tensor | None) -> Tensor:
    """The weights that stay, not yet scaled, and zeros."""
    return weights if stays is None else weights * stays
