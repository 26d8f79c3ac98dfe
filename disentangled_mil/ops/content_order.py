"""An order of tokens that follows from what they are, not from where they stand."""

import torch
from torch import Tensor

from .._checks import check_floating, check_mask, check_shape

_ROWS = 256  # Tokens of a bag that are projected at once.


def content_order(tokens: Tensor, mask: Tensor) -> Tensor:
    """Order the tokens of every bag by their projection on one fixed direction, padding last.

    The direction is generic, so that different tokens have different projections. Then the order of the input counts
    among equal tokens only, which are interchangeable. Nothing is differentiable.

    The order is not continuous: two tokens with nearly equal projections change places if their values are rounded
    otherwise, for example on another device. The same values have the same order.

    Args:
        tokens: finite tokens; padding may hold anything.
        mask: mask of the tokens (True = real token).

    Shape:
        ``tokens`` [B, N, C], ``mask`` [B, N].

    Returns:
        Indices of the tokens [B, N]; the real ones come first.

    Raises:
        TypeError: tokens are not floating-point, or the mask is not bool.
        ValueError: shapes disagree.

    Example:
        >>> import torch
        >>> from disentangled_mil.ops import content_order
        >>> tokens = torch.tensor([[[4.0], [1.0], [3.0]]])
        >>> content_order(tokens, torch.tensor([[True, True, False]])).tolist()
        [[1, 0, 2]]
    """
    sizes = check_shape("tokens", tokens, "B N C")
    check_floating("tokens", tokens)
    check_mask("mask", mask, "B N", sizes)
    direction = torch.arange(1, sizes["C"] + 1, dtype=torch.float64, device=tokens.device).sin()
    # Tokens are projected in parts, so that no copy of all of them in float64 is held. The sizes of an exporter, which
    # are no integers, have no number of parts.
    whole = tokens.detach()
    parts = [p.double() @ direction for p in (torch.split(whole, _ROWS, 1) if isinstance(sizes["N"], int) else [whole])]
    projection = torch.cat(parts, dim=1).nan_to_num(0.0, 0.0, 0.0)
    return projection.masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)
