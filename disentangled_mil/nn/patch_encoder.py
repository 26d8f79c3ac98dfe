"""From stored patch features to tokens."""

import torch
from torch import Tensor, nn

from .._checks import check_count, check_floating, check_interval, check_shape


class PatchEncoder(nn.Module):
    """Standardise patch features and project them: Dropout(ReLU(Linear((x - mean) / std))).

    Mean and standard deviation are buffers, 0 and 1 until :meth:`fit` takes them from training patches; so they
    are stored with the weights and come back with them.

    Args:
        features: width of the stored patch features.
        dim: token width C.
        dropout: of the tokens' channels.

    Shape:
        [B, N, features] in any floating-point type -> [B, N, C] in the type of the weights.

    Raises:
        TypeError: patches are not floating-point.
        ValueError: the feature width differs.

    Source: the paper's first layer: Linear and ReLU.
    Differs from the source: standardisation (off until fitted) and dropout.

    Example:
        >>> import torch
        >>> from disentangled_mil import PatchEncoder
        >>> encode = PatchEncoder(1024, 128)
        >>> encode(torch.randn(2, 50, 1024, dtype=torch.float16)).shape
        torch.Size([2, 50, 128])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, dim: int = 128, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_count("features", features)
        check_count("dim", dim)
        check_interval("dropout", dropout, 0, 1)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.project = nn.Sequential(nn.Linear(features, dim), nn.ReLU(), nn.Dropout(dropout))

    @torch.no_grad()
    def fit(self, patches: Tensor) -> None:
        """Take mean and standard deviation from training patches [n, features]; a constant feature keeps std 1."""
        sizes = check_shape("patches", patches, "n features", {"features": len(self.mean)})
        if sizes["n"] == 0:
            raise ValueError("patches must hold at least one patch to fit, got none")
        wide = patches.double()
        self.mean.copy_(wide.mean(0))
        std = wide.std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6, std, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens of the patches."""
        check_shape("patches", patches, "B N features", {"features": len(self.mean)})
        check_floating("patches", patches)
        tokens: Tensor = self.project((patches.to(self.mean.dtype) - self.mean) / self.std)
        return tokens
