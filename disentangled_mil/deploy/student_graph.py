"""A student as a function of plain tensors, which lays tokens out by their coordinates itself."""

from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor, nn

from .._checks import check_choice, check_texts, check_type
from ..bags import Bag, TokenSet
from ..data.slide_reading import TRANSFORMS, transformed
from ..models import Student
from ._open_grid import OpenGrid


class StudentResult(NamedTuple):
    """What :class:`StudentGraph` returns.

    Attributes:
        logits: prediction [B, K].
        gate: share of each magnification in the gated prediction [B, M].
    """

    logits: Tensor
    gate: Tensor


class StudentGraph(nn.Module):
    """A student that takes tensors instead of bags, in the order of :attr:`inputs`.

    Args:
        student: student.
        sets: magnifications whose bags have no coordinates.
        transform: transform of stored features, see :class:`~disentangled_mil.data.SlideReading`.

    Shape:
        For every magnification: ``patches`` [B, N, features] and ``mask`` [B, N]. With coordinates also ``coords``
        [B, N, 2] and ``step`` [B], both float64. The step is the side of a grid cell in the unit of the coordinates.

    Example:
        >>> import torch
        >>> from disentangled_mil import Student
        >>> from disentangled_mil.deploy import StudentGraph
        >>> student = Student(8, 3, magnifications=["20x"], dim=16, heads=2, groups=2, dim_head=8)
        >>> graph = StudentGraph(student.eval(), sets=["20x"])
        >>> graph.inputs
        ('patches_20x', 'mask_20x')
        >>> graph(torch.randn(2, 9, 8), torch.ones(2, 9, dtype=torch.bool)).logits.shape
        torch.Size([2, 3])
    """

    def __init__(self, student: Student, *, sets: Collection[str] = (), transform: str = "none") -> None:
        super().__init__()
        check_type("student", student, Student, "a Student")
        check_choice("transform", transform, TRANSFORMS)
        self.student, self.sets, self.transform = student, check_texts("sets", sets), transform

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(
            f"{part}_{name}"
            for name in self.student.magnifications
            for part in (("patches", "mask") if name in self.sets else ("patches", "mask", "coords", "step"))
        )

    def forward(self, *tensors: Tensor) -> StudentResult:
        """Predict from tensors."""
        given = dict(zip(self.inputs, tensors, strict=True))
        bags = {}
        for name in self.student.magnifications:
            mask = given[f"mask_{name}"]
            grid = (
                TokenSet(mask)
                if name in self.sets
                else OpenGrid.of(given[f"coords_{name}"], mask, given[f"step_{name}"])
            )
            bags[name] = Bag(transformed(given[f"patches_{name}"], self.transform), grid)
        out = self.student(bags)
        return StudentResult(out.logits, out.gate)
