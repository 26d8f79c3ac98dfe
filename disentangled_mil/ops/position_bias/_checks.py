"""Checks of position biases."""

from ..._checks import check_floating, check_interval, check_shape
from ._network import MLPBias
from ._table import LARGEST_REACH, BiasTable


def check_bias(bias: MLPBias | BiasTable, per_group: int) -> None:
    """Refuse tensors that make no bias for ``per_group`` heads."""
    if isinstance(bias, BiasTable):
        sizes = check_shape("bias.values", bias.values, "I R S", {"I": per_group})
        check_floating("bias.values", bias.values)
        if sizes["R"] != sizes["S"] or sizes["R"] < 2:
            raise ValueError(f"bias.values must have shape [I, R, R] with R >= 2, got {list(bias.values.shape)}")
        check_interval("bias.reach", bias.reach, 0, LARGEST_REACH, open_low=True)
        return
    sizes = check_shape("bias.w1", bias.w1, "F 2")
    check_shape("bias.w2", bias.w2, "F F", sizes)
    check_shape("bias.w3", bias.w3, "I F", sizes | {"I": per_group})
    check_shape("bias.b1", bias.b1, "F", sizes)
    check_shape("bias.b2", bias.b2, "F", sizes)
    check_shape("bias.b3", bias.b3, "I", {"I": per_group})
