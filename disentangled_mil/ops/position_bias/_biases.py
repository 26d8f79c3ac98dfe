"""Attention biases that are functions of a displacement: as a small network, or as a table of its values."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, linear, relu

from ..._checks import check_count, check_floating, check_interval, check_shape

_LARGEST_REACH = 1e6


class MLPBias(NamedTuple):
    """Bias of a displacement d as a network of its log-spaced coordinates s = sign(d) log(1 + abs(d)).

    ``bias = w3 relu(w2 relu(w1 s + b1) + b2) + b3``, one number for each of the I heads of a group.

    Shape:
        ``w1`` [F, 2], ``b1`` [F], ``w2`` [F, F], ``b2`` [F], ``w3`` [I, F], ``b3`` [I];
        displacements [..., 2] -> [..., I].

    Source: Swin Transformer V2 (Liu et al., arXiv 2111.09883), in the paper's deformation layer.

    Example:
        >>> import torch
        >>> from disentangled_mil import ContinuousPositionBias
        >>> bias = ContinuousPositionBias(hidden=32, outputs=1).weights()
        >>> bias(torch.zeros(5, 7, 2)).shape
        torch.Size([5, 7, 1])
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    def __call__(self, displacement: Tensor) -> Tensor:
        """Bias of each displacement [..., 2] -> [..., I]."""
        hidden = relu(linear(log_spaced(displacement).to(self.w1.dtype), self.w1, self.b1))
        bias: Tensor = linear(relu(linear(hidden, self.w2, self.b2)), self.w3, self.b3)
        return bias

    def lipschitz_constant(self) -> Tensor:
        """How fast each head's bias can change at most, per unit of displacement [I]: a Lipschitz constant."""
        first, second = (torch.linalg.matrix_norm(w.detach().double(), ord=2) for w in (self.w1, self.w2))
        lipschitz_constant: Tensor = torch.linalg.vector_norm(self.w3.detach().double(), dim=1) * first * second
        return lipschitz_constant


class BiasTable(NamedTuple):
    """Bias of a displacement, read from a table of its values and interpolated bilinearly.

    Column c stands for the displacement ``x = reach (2 c / (R - 1) - 1)``, rows likewise for y. Displacements
    outside are moved to the edge, and have no gradient there. The table has one: to its values, and through
    them to whatever made them.

    Shape:
        ``values`` [I, R, R], ``reach``: a number; displacements [..., 2] -> [..., I].
    """

    values: Tensor
    reach: float = 2.0

    @classmethod
    def of(
        cls,
        bias: Callable[[Tensor], Tensor],
        *,
        resolution: int = 129,
        reach: float = 2.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "BiasTable":
        """The table of any function of the displacement.

        Args:
            bias: maps displacements [..., 2] to biases [..., I].
            resolution: R, nodes along each side.
            reach: largest displacement; 2 spans all pairs of positions in [-1, 1].
            dtype: of the nodes.
            device: of the nodes.

        Raises:
            TypeError: ``resolution`` is no integer.
            ValueError: ``resolution`` is less than 2, or ``reach`` not positive.

        Example:
            >>> import torch
            >>> from disentangled_mil.ops import BiasTable
            >>> table = BiasTable.of(lambda d: d.sum(-1, keepdim=True), resolution=5)
            >>> table(torch.tensor([0.25, -1.0]))
            tensor([-0.7500])
        """
        check_count("resolution", resolution, 2)
        check_interval("reach", reach, 0, _LARGEST_REACH, open_low=True)
        node = torch.linspace(-reach, reach, resolution, dtype=dtype, device=device)
        y, x = torch.meshgrid(node, node, indexing="ij")
        return cls(bias(torch.stack([x, y], dim=-1)).movedim(-1, 0).to(dtype), reach)

    def __call__(self, displacement: Tensor) -> Tensor:
        """Bias of each displacement [..., 2] -> [..., I]."""
        place = (displacement.to(self.values.dtype) / self.reach).reshape(1, 1, -1, 2)
        # Reading at NaN would be reading anywhere in memory.
        known = place.nan_to_num(0, posinf=2, neginf=-2)
        read: Tensor = grid_sample(self.values[None], known, align_corners=True, padding_mode="border")
        read = read.masked_fill(place.isnan().any(-1)[:, None], torch.nan)
        bias: Tensor = read[0, :, 0].T.reshape(*displacement.shape[:-1], len(self.values))
        return bias

    def error_bound(self, lipschitz_constant: Tensor) -> Tensor:
        """Largest error of the table within its reach: Lipschitz constant x pitch / sqrt(2).

        A read value is a mean of four corners, and no corner differs from the function by more than its distance
        times the Lipschitz constant. For a smooth function or a network the error is usually far smaller.

        Args:
            lipschitz_constant: a Lipschitz constant of the function, such as :meth:`MLPBias.lipschitz_constant`.
        """
        pitch = 2 * self.reach / (self.values.shape[-1] - 1)
        return lipschitz_constant * pitch * 2**-0.5


Bias: TypeAlias = MLPBias | BiasTable | Callable[[Tensor], Tensor] | None


def log_spaced(displacement: Tensor) -> Tensor:
    """sign(d) log(1 + abs(d)), each coordinate by itself; its derivative 1 / (1 + abs(d)) holds at 0 too."""
    # Not by clamping, whose slope at its limits differs between releases of PyTorch.
    left = displacement < 0
    onwards = displacement.masked_fill(left, 0).log1p()
    return torch.where(left, -displacement.where(left, 0).neg().log1p(), onwards)


def check_bias(bias: MLPBias | BiasTable, per_group: int) -> None:
    """Refuse tensors that make no bias for ``per_group`` heads."""
    if isinstance(bias, BiasTable):
        sizes = check_shape("bias.values", bias.values, "I R S", {"I": per_group})
        check_floating("bias.values", bias.values)
        if sizes["R"] != sizes["S"] or sizes["R"] < 2:
            raise ValueError(f"bias.values must have shape [I, R, R] with R >= 2, got {list(bias.values.shape)}")
        check_interval("bias.reach", bias.reach, 0, _LARGEST_REACH, open_low=True)
        return
    sizes = check_shape("bias.w1", bias.w1, "F 2")
    check_shape("bias.w2", bias.w2, "F F", sizes)
    check_shape("bias.w3", bias.w3, "I F", sizes | {"I": per_group})
    check_shape("bias.b1", bias.b1, "F", sizes)
    check_shape("bias.b2", bias.b2, "F", sizes)
    check_shape("bias.b3", bias.b3, "I", {"I": per_group})
