"""A small deformable layer, and bags for it."""

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from disentangled_mil.bags import Bag
from disentangled_mil.nn import DeformableCrossAttention

few = settings(max_examples=12)
seeds = st.integers(0, 10**6)
bag_shapes = st.tuples(st.integers(1, 14), st.integers(1, 7), st.integers(1, 7))  # tokens, width, height
exact: dict[str, Any] = {"rtol": 0, "atol": 1e-10}


def small_layer(seed: int = 0, **options: Any) -> DeformableCrossAttention:
    """A float64 layer in evaluation mode: C = 8, H = 4, G = 2."""
    sizes = {"heads": 4, "dim_head": 4, "groups": 2, "downsample": 2, "offset_scale": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = DeformableCrossAttention(8, **(sizes | options)).double().eval()
        for parameter in layer.parameters():  # larger than at initialization, so that everything counts
            torch.nn.init.normal_(parameter, std=0.5)
    return layer


def draw_bag(seed: int, tokens: int, width: int, height: int) -> Bag:
    """Tokens on random cells of a rectangle: holes, duplicates, any order."""
    source = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    coords = (torch.rand(tokens, 2, dtype=torch.float64, generator=source) * size).floor()
    features = torch.randn(tokens, 8, dtype=torch.float64, generator=source)
    return Bag.from_slide(features, coords, step=1)


def poison(bag: Bag, value: float) -> Tensor:
    """The patches of a bag with something terrible in its padding."""
    return bag.patches.masked_fill(~bag.mask[..., None], value)
