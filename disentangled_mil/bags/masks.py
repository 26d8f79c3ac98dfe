"""Conversion of masks of tokens from and to those of other packages.

In this package True is a real token. Others count in four ways: ``"real"`` (1 or True is a real token: CLAM, MIL-Lab,
torchmil and tokenizers), ``"padding"`` (1 or True is padding: ``key_padding_mask`` of PyTorch), ``"additive"`` (a term
of the scores, 0 for a real token and negative infinity or a very large negative number for padding), and ``"lengths"``
(the number of real tokens of every bag, which come first).
"""

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_shape, check_type

CONVENTIONS = ("real", "padding", "additive", "lengths")
_LEAST = -1e4  # Terms of padding are at most this, also in float16.


def mask_from(other: Tensor, convention: str, *, tokens: int | None = None) -> Tensor:
    """The mask of this package (True = real token) from that of another one.

    Args:
        other: mask, terms or lengths of another package.
        convention: meaning of its values: ``"real"``, ``"padding"``, ``"additive"`` or ``"lengths"``.
        tokens: number of tokens N of the longest bag, which lengths alone do not tell.

    Shape:
        ``other`` [B, N]; [B] for lengths.

    Returns:
        The mask [B, N], bool.

    Raises:
        TypeError: ``other`` is no tensor, or ``tokens`` no integer.
        ValueError: the convention is unknown, a shape differs, or a value does not belong to the convention.

    Example:
        >>> import torch
        >>> from disentangled_mil.bags import mask_from
        >>> mask_from(torch.tensor([[0.0, 0.0, 1.0]]), "padding")
        tensor([[ True,  True, False]])
        >>> mask_from(torch.tensor([1, 3]), "lengths").tolist()
        [[True, False, False], [True, True, True]]
    """
    check_choice("convention", convention, CONVENTIONS)
    check_type("other", other, Tensor, "a tensor")
    check_shape("other", other, "B" if convention == "lengths" else "B N")
    if convention == "lengths":
        return _first(other, tokens)
    if convention == "additive":
        _check_values(other, (other == 0) | (other <= _LEAST), "0 for a real token and at most -1e4 for padding")
        return other == 0
    _check_values(other, (other == 0) | (other == 1), "0 or 1")
    return other == (convention == "real")


def mask_to(mask: Tensor, convention: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """The opposite of :func:`mask_from`.

    Args:
        mask: mask of this package (True = real token).
        convention: meaning of the values of the result.
        dtype: type of the result; by default bool for ``"real"`` and ``"padding"``, float32 for ``"additive"``, and
            int64 for ``"lengths"``.

    Shape:
        ``mask`` [B, N].

    Returns:
        [B, N]; [B] for lengths.

    Raises:
        TypeError: the mask is no bool tensor.
        ValueError: the convention is unknown, or the real tokens of a bag do not come first and lengths are asked for.

    Example:
        >>> import torch
        >>> from disentangled_mil.bags import mask_to
        >>> mask_to(torch.tensor([[True, True, False]]), "padding", dtype=torch.float32)
        tensor([[0., 0., 1.]])
    """
    check_choice("convention", convention, CONVENTIONS)
    check_shape("mask", mask, "B N")
    if dtype is not None:
        check_type("dtype", dtype, torch.dtype, "a torch.dtype")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor (True = real token), got {mask.dtype}")
    if convention == "real":
        return mask.to(dtype or torch.bool)
    if convention == "padding":
        return (~mask).to(dtype or torch.bool)
    if convention == "additive":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    lengths = mask.sum(1)
    if not torch.equal(mask, _first(lengths, mask.shape[1])):
        raise ValueError("mask must have the real tokens of every bag first, because lengths express no other order")
    return lengths.to(dtype or torch.int64)


def _first(lengths: Tensor, tokens: int | None) -> Tensor:
    longest = int(lengths.max()) if len(lengths) else 0
    if tokens is not None:
        check_count("tokens", tokens)
    count = longest if tokens is None else tokens
    _check_values(lengths, (lengths >= 0) & (lengths <= count), f"from 0 to the number of tokens, {count}")
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def _check_values(other: Tensor, allowed: Tensor, wanted: str) -> None:
    if not bool(allowed.all()):
        first = (~allowed).nonzero()[0].tolist()
        raise ValueError(
            f"other must hold values {wanted}, got {other[tuple(first)].item()} at {first}; "
            "give the convention of the package it is from"
        )
