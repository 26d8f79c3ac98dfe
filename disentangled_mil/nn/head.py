"""The head over the concatenated subspace vectors, with one block per subspace."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_count, check_floating, check_names, check_shape, check_subspaces


class HeadOutput(NamedTuple):
    """The result of :class:`SubspaceHead`.

    Attributes:
        logits: logits [B, K].
        subspace_logits: share of each subspace [B, K]. The shares sum to ``logits``.
    """

    logits: Tensor
    subspace_logits: dict[str, Tensor]


class SubspaceHead(nn.Module):
    r"""A linear head over the concatenated subspace vectors, with one block of weights per subspace.

    .. math:: \mathrm{logits} = \sum_s W_s X_s + b, \qquad \mathrm{share}_s = W_s X_s + b / S

    Args:
        dim: width C of a subspace vector.
        outputs: number K of classes, or of intervals of a discrete-time survival model.
        subspaces: names of the S subspaces, in order.

    Shape:
        {subspace: [B, C]} -> logits [B, K].

    Returns:
        A :class:`HeadOutput`.

    Raises:
        TypeError: features are no mapping, or not floating-point.
        ValueError: names or shapes disagree.

    Source:
        The paper, before equation 6.

    Example:
        >>> import torch
        >>> from disentangled_mil import SubspaceHead
        >>> head = SubspaceHead(16, 4, ("tumor", "tme"))
        >>> out = head({"tumor": torch.randn(3, 16), "tme": torch.randn(3, 16)})
        >>> out.logits.allclose(out.subspace_logits["tumor"] + out.subspace_logits["tme"], atol=1e-6)
        True
    """

    def __init__(self, dim: int, outputs: int, subspaces: Sequence[str] = ("tumor", "tme")) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("outputs", outputs)
        self.dim, self.outputs, self.subspaces = dim, outputs, check_subspaces(subspaces)
        # The blocks are cut from one Linear(S C, K), so they are initialized like it.
        whole = nn.Linear(dim * len(self.subspaces), outputs)
        blocks = whole.weight.detach().chunk(len(self.subspaces), dim=1)
        # A ParameterDict sorts the names of a dict, so the blocks are added one by one.
        self.blocks = nn.ParameterDict()
        for name, block in zip(self.subspaces, blocks, strict=True):
            self.blocks[name] = nn.Parameter(block.clone())
        self.bias = nn.Parameter(whole.bias.detach().clone())

    def forward(self, features: Mapping[str, Tensor]) -> HeadOutput:
        """Compute the logits of the whole head and of every subspace."""
        shares = self.subspace_logits(features)
        return HeadOutput(torch.stack(list(shares.values())).sum(0), shares)

    def subspace_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The share W_s X_s + b / S of each subspace [B, K], from {subspace: [B, C]}."""
        check_names("features", features, self.subspaces)
        sizes = {"C": self.dim}
        for name in self.subspaces:
            sizes |= check_shape(f"features[{name!r}]", features[name], "B C", sizes)
            check_floating(f"features[{name!r}]", features[name])
        bias = self.bias / len(self.subspaces)
        given = {name: features[name].to(bias.dtype) for name in self.subspaces}
        return {name: nn.functional.linear(given[name], self.blocks[name], bias) for name in self.subspaces}

    def subspace_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The block of each subspace, as :class:`~disentangled_mil.CGCOptimizer` takes them."""
        return {name: [self.blocks[name]] for name in self.subspaces}

    def extra_repr(self) -> str:
        """The options of the constructor."""
        return f"{self.dim}, {self.outputs}, {self.subspaces}"
