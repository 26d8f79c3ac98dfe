"""The patch encoder turns stored patch features into tokens."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .._checks import check_count, check_floating, check_interval, check_mask, check_shape, check_type
from .._precision import weight_dtype


class PatchEncoder(nn.Module):
    r"""Standardize patch features and project them.

    .. math:: \mathrm{token} = \mathrm{Dropout}(\mathrm{ReLU}(\mathrm{Linear}((x - \mathrm{mean}) / \mathrm{std})))

    Mean and standard deviation are buffers, so they are stored with the weights. They are 0 and 1 until :meth:`fit`
    computes them from training patches.

    Args:
        features: width of the stored patch features.
        dim: width C of a token.
        dropout: probability of dropout of a channel of a token.

    Shape:
        ``patches`` [B, N, features] in any floating-point type, ``mask`` [B, N] (True = real token; without it all are
        real) -> tokens [B, N, C].

    Returns:
        The tokens, in the type of the weights.

    Raises:
        TypeError: patches are not floating-point, or the mask is not bool.
        ValueError: the feature width differs, or the mask has another shape.

    Source:
        The first layer of the paper, Linear and ReLU.

    Differs from the source:
        Standardization, which has no effect before :meth:`fit`, and dropout.

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
    def fit(self, patches: Tensor | Iterable[Tensor]) -> None:
        """Compute mean and standard deviation of training patches. A constant feature keeps the deviation 1.

        Args:
            patches: all patches, or an iterable of parts, so that only one part is in memory.

        Shape:
            ``patches``, or every part, [n, features].

        Raises:
            TypeError: patches are not floating-point.
            ValueError: the feature width differs, a value is not finite, or there is no patch.
        """
        check_type("patches", patches, Iterable, "a tensor or several")
        count = 0
        mean = squares = torch.zeros_like(self.mean, dtype=torch.float64)
        for part in [patches] if isinstance(patches, Tensor) else patches:
            more = check_shape("patches", part, "n features", {"features": len(self.mean)})["n"]
            check_floating("patches", part)
            if more:
                wide = part.to(mean)
                of_part, known = wide.mean(0), count / (count + more)
                squares = squares + (wide - of_part).square().sum(0) + (of_part - mean).square() * (known * more)
                count, mean = count + more, of_part.lerp(mean, known)
        if count == 0:
            raise ValueError("patches must hold at least one patch to fit, got none")
        if not bool(squares.isfinite().all()):
            raise ValueError("patches must be finite to fit, got NaN or infinity")
        std = (squares / count) ** 0.5
        self.mean.copy_(mean)
        # A feature that varies only by rounding, or far less than all others, is not amplified.
        self.std.copy_(torch.where(std > 1e-6 * torch.maximum(mean.abs(), std.max()), std, 1))

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the patches. Padding may hold any value, even NaN."""
        sizes = check_shape("patches", patches, "B N features", {"features": len(self.mean)})
        check_floating("patches", patches)
        if mask is not None:
            check_mask("mask", mask, "B N", sizes)
        # The division is in place, because a copy of wide features costs as much as their projection.
        standard = (patches.to(self.mean.dtype) - self.mean).div_(self.std)
        if mask is not None:
            standard.masked_fill_(~mask[..., None], 0)
        tokens: Tensor = self.project(standard.to(weight_dtype(self.project)))
        return tokens
