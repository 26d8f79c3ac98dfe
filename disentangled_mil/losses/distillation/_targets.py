"""The outputs of a frozen teacher, as a student's training needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._checks import check_floating, check_mapping, check_mask, check_names, check_shape, check_subspaces
from ..._collection import BatchCollection
from .._reduction import without_absent


@dataclass(frozen=True, eq=False)
class DistillationTargets(BatchCollection, parts=("logits", "present", "subspaces", "shares")):
    """Outputs of a frozen teacher. They are computed once per training set and reused in every epoch.

    Attributes:
        logits: logits of the teacher [B, K], float32.
        present: mask of the samples that have a teacher [B]. Patients without a transcriptome have none. Their rows are
            zeros and take no part in any loss.
        subspaces: subspace vectors of the teacher [B, S, C], float32, in the order of the subspaces. None for targets
            of several teachers, whose vectors lie in different spaces.
        shares: share of each subspace in the logits [B, S, K], float32, in the order of the subspaces; or None.

    Example:
        >>> import torch
        >>> from disentangled_mil import DistillationTargets
        >>> targets = DistillationTargets(torch.zeros(3, 4), torch.tensor([True, True, False]))
        >>> targets.to(torch.float64).logits.dtype
        torch.float64
    """

    logits: Tensor
    present: Tensor
    subspaces: Tensor | None = None
    shares: Tensor | None = None

    @classmethod
    def from_teacher(
        cls,
        logits: Tensor,
        features: Mapping[str, Tensor] | None = None,
        *,
        shares: Mapping[str, Tensor] | None = None,
        present: Tensor | None = None,
        subspaces: Sequence[str] | None = None,
    ) -> "DistillationTargets":
        """Detach the outputs of a teacher in evaluation mode, and stack its subspaces.

        Args:
            logits: logits of the teacher.
            features: vector of the teacher per subspace, if there are any.
            shares: share of each subspace in the logits, if there are any.
            present: mask of the samples that have a teacher. Without it all have one. Other rows may hold any value.
            subspaces: names in the order of the student's prototypes. By default this is the order of ``features``,
                or of ``shares``.

        Shape:
            ``logits`` [B, K], every vector of ``features`` [B, C], every share [B, K], ``present`` [B].

        Returns:
            The targets, in float32.

        Raises:
            TypeError: an argument is not a floating-point tensor, or ``present`` is not bool.
            ValueError: a shape differs, there is no subspace, or ``features`` or ``shares`` has other names than
                ``subspaces``.

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
        for name, given in (("features", features), ("shares", shares)):
            if given is not None:
                check_mapping(name, given)
            if given is not None and not given:
                raise ValueError(f"{name} must have at least one subspace, got none")
        names = check_subspaces(subspaces if subspaces is not None else tuple(features or shares or ("logits",)))
        if present is None:
            present = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        check_mask("present", present, "B", sizes)

        def stacked(name: str, given: Mapping[str, Tensor] | None, spec: str) -> Tensor | None:
            if given is None:
                return None
            check_names(name, given, names)
            known = dict(sizes)
            for subspace, rows in given.items():
                known |= check_shape(f"{name}[{subspace!r}]", rows, spec, known)
                check_floating(f"{name}[{subspace!r}]", rows)
            rows = torch.stack([given[subspace] for subspace in names], dim=1)  # [B, S, C or K]
            return without_absent(rows.detach().float(), present)

        return cls(
            without_absent(logits.detach().float(), present),
            present,
            stacked("features", features, "B C"),
            stacked("shares", shares, "B K"),
        )

    def select(self, index: Tensor) -> "DistillationTargets":
        """The targets of some samples, by their indices or a bool mask [B]."""
        if isinstance(index, str) or not isinstance(index, (Tensor, slice, Sequence)):
            raise TypeError(f"index must be a tensor of indices or a bool mask, got {type(index).__name__}")
        try:
            return self._map(lambda column: column[index])
        except IndexError as error:
            raise IndexError(f"index must select some of the {len(self.logits)} samples: {error}") from error
