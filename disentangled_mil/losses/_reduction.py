"""What the losses share about the batch dimension."""

from torch import Tensor

from .._checks import check_shape


def check_batch(name: str, tensor: Tensor) -> None:
    """Check that there is a sample to take the mean over."""
    if tensor.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one sample, got shape {list(tensor.shape)}")


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """``sum_i w_i v_i / sum_i w_i``; the plain mean without weights; 0 with a gradient path if all are 0.

    Shape:
        ``values``, ``weight`` [B].
    """
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    total = weight.sum()
    return (weight * values).sum() / total.masked_fill(total == 0, 1)


def without_absent(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Rows of weight 0 as zeros, so that whatever they hold (NaN even) reaches neither loss nor gradient.

    Shape:
        ``rows`` [B, ...]; ``weight`` [B].
    """
    if weight is None:
        return rows
    check_shape("weight", weight, "B", {"B": rows.shape[0]})
    return rows.masked_fill((weight == 0).view(-1, *[1] * (rows.ndim - 1)), 0)
