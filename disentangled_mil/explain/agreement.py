"""How well a map finds a known region."""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from .._checks import check_shape


def region_agreement(values: Tensor, truth: Tensor) -> dict[str, float]:
    """Dice coefficient and AUROC of a column of a map against the true region, tile by tile.

    ``Dice = 2 |P and T| / (|P| + |T|)``, where P are the tiles with a value above 0.5, as a membership has.

    Args:
        values: membership or score of every tile.
        truth: mask of the tiles that lie in the region.

    Shape:
        ``values`` [N], ``truth`` [N] bool.

    Returns:
        ``dice``; ``dice_all``, the Dice of calling every tile the region, which a map must exceed; and ``auroc``, NaN
        where the truth has one value only.

    Raises:
        TypeError: the truth is not bool.
        ValueError: shapes disagree, or there is no tile.

    Example:
        >>> import torch
        >>> from disentangled_mil.explain import region_agreement
        >>> truth = torch.tensor([True, True, False, False])
        >>> region_agreement(torch.tensor([1.0, 0.0, 0.0, 0.0]), truth)
        {'dice': 0.666..., 'dice_all': 0.666..., 'auroc': 0.75}
    """
    sizes = check_shape("values", values, "N")
    check_shape("truth", truth, "N", sizes)
    if truth.dtype != torch.bool:
        raise TypeError(f"truth must be a bool tensor (True = in the region), got {truth.dtype}")
    if not sizes["N"]:
        raise ValueError("values must hold at least one tile, got none")
    chosen, share = values > 0.5, float(truth.double().mean())
    total = int(chosen.sum() + truth.sum())
    dice = 2 * int((chosen & truth).sum()) / total if total else 1.0
    auroc = float(roc_auc_score(truth.cpu(), values.cpu())) if 0 < share < 1 else float("nan")
    return {"dice": dice, "dice_all": 2 * share / (1 + share), "auroc": auroc}
