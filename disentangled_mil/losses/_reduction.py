"""What the losses share about the samples of a batch."""

from torch import Tensor

from .._checks import check_shape, check_weights


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean ``sum_i w_i v_i / sum_i w_i`` of values [B] with weights [B], if there are any.

    Returns:
        A scalar. It is 0 with a gradient of 0 if all weights are 0.
    """
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    total = weight.sum()
    return (weight * values).sum() / total.masked_fill(total == 0, 1)


def without_absent(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Rows [B, ...] with zeros where the weight [B] is 0.

    Returns:
        The rows. What a row of weight 0 holds, even NaN, reaches neither the loss nor a gradient.
    """
    if weight is None:
        return rows
    check_shape("weight", weight, "B", {"B": rows.shape[0]})
    check_weights("weight", weight)
    return rows.masked_fill((weight == 0).view(-1, *[1] * (rows.ndim - 1)), 0)
