"""Keys of a set: context tokens that are chosen without regard to their order."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import content_order


class SetKeys(NamedTuple):
    """The tokens of a set that are keys.

    Attributes:
        tokens: the chosen tokens, in any order; zeros where a bag has fewer [B, J, C].
        chosen: indices of the chosen tokens [B, J]; None if all tokens are keys, in their order.
        mask: mask of the keys that a bag has [B, J].
    """

    tokens: Tensor
    chosen: Tensor | None
    mask: Tensor


def set_keys(tokens: Tensor, mask: Tensor, max_keys: int | None) -> SetKeys:
    """Choose the keys of every bag: all tokens of a bag of at most ``max_keys``, else a sample spread over its content.

    The sample is systematic: it takes every (n / max_keys)-th token in the order of
    :func:`~disentangled_mil.ops.content_order`. Keys are then as dense as the tokens they come from, so that an average
    over keys is close to that over tokens. The choice itself has no gradient.

    The choice does not depend on the order of the tokens, but a hard choice is not continuous in their values.
    Relative noise of 6e-8 on 60,000 random tokens swapped 0 to 3 of 1,000 keys. Each swap moves an output by the
    attention weight of the key, about 1 / 1,000, times the difference of two values.

    Args:
        tokens: finite context tokens; padding may hold anything.
        mask: mask of the tokens (True = real token).
        max_keys: largest number of keys of a bag, or None for any number.

    Shape:
        ``tokens`` [B, N, C], ``mask`` [B, N].

    Returns:
        The keys, J = min(N, max_keys).

    Example:
        >>> import torch
        >>> from disentangled_mil.nn.set_keys import set_keys
        >>> tokens = torch.tensor([[[4.0], [1.0], [3.0], [2.0]]])
        >>> set_keys(tokens, torch.ones(1, 4, dtype=torch.bool), 2).tokens.flatten().tolist()
        [2.0, 4.0]
    """
    tokens = torch.where(mask[..., None], tokens, 0)
    # An exporter's sizes are no integers.
    few = isinstance(tokens.shape[1], int) and tokens.shape[1] <= (max_keys or 0)
    if max_keys is None or few:
        return SetKeys(tokens, None, mask)
    count = mask.sum(1, keepdim=True)
    rank = torch.arange(max_keys, device=tokens.device)[None]
    own = rank < count
    # A larger bag has ``max_keys`` strata of equal size; their middles are its keys.
    rank = torch.where(count > max_keys, (2 * rank + 1) * count // (2 * max_keys), rank)
    chosen = content_order(tokens, mask).gather(1, torch.where(own, rank, 0))
    return SetKeys(tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2])), chosen, own)
