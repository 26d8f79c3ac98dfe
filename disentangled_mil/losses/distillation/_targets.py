"""The outputs of a frozen teacher, as a student's training needs them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..._checks import check_floating, check_mask, check_names, check_shape, check_subspaces
from .._reduction import without_absent


class DistillationTargets(NamedTuple):
    """Outputs of a frozen teacher. They are computed once per training set and reused in every epoch.

    Attributes:
        logits: logits of the teacher [B, K], float32.
        subspaces: subspace vectors of the teacher [B, S, C], float32, in the order of the subspaces.
        present: True = the sample has a teacher [B]. Patients without a transcriptome have none. Their rows are zeros
            and take no part in any loss.
    """

    logits: Tensor
    subspaces: Tensor
    present: Tensor

    @classmethod
    def from_teacher(
        cls,
        logits: Tensor,
        features: Mapping[str, Tensor],
        *,
        present: Tensor | None = None,
        subspaces: Sequence[str] | None = None,
    ) -> "DistillationTargets":
        """Detach the outputs of a teacher in evaluation mode, and stack its subspaces.

        Args:
            logits: logits of the teacher.
            features: vector of the teacher per subspace.
            present: True = the sample has a teacher. Without it all have one. Other rows may hold any value.
            subspaces: names in the order of the student's prototypes. By default this is the order of ``features``.

        Shape:
            logits [B, K], every vector of features [B, C], present [B].

        Returns:
            The targets, in float32.

        Raises:
            TypeError: an argument is not a floating-point tensor, or ``present`` is not bool.
            ValueError: a shape differs, there is no subspace, or ``features`` has other names than ``subspaces``.

        Example:
            >>> import torch
            >>> from disentangled_mil import DistillationTargets
            >>> features = {"tumor": torch.ones(3, 8), "tme": torch.zeros(3, 8)}
            >>> targets = DistillationTargets.from_teacher(torch.zeros(3, 4), features)
            >>> targets.select(torch.tensor([2, 0])).subspaces.shape
            torch.Size([2, 2, 8])
        """
        sizes = check_shape("logits", logits, "B K")
        check_floating("logits", logits)
        if not features:
            raise ValueError("features must have at least one subspace, got none")
        subspaces = tuple(features) if subspaces is None else check_subspaces(subspaces)
        check_names("features", features, subspaces)
        for subspace, vectors in features.items():
            sizes |= check_shape(f"features[{subspace!r}]", vectors, "B C", sizes)
            check_floating(f"features[{subspace!r}]", vectors)
        if present is None:
            present = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        check_mask("present", present, "B", sizes)
        stacked = torch.stack([features[subspace] for subspace in subspaces], dim=1)  # [B, S, C]
        return cls(
            without_absent(logits.detach().float(), present),
            without_absent(stacked.detach().float(), present),
            present,
        )

    def select(self, index: Tensor) -> "DistillationTargets":
        """The targets of some samples, by their indices or a bool mask [B]."""
        return DistillationTargets(*(column[index] for column in self))

    def to(self, device: torch.device | str) -> "DistillationTargets":
        """The targets on another device."""
        return DistillationTargets(*(column.to(device) for column in self))


# A file of targets can then be loaded with ``weights_only=True``.
torch.serialization.add_safe_globals([DistillationTargets])
