"""What a model sees on the tiles of a bag: its attention, and its prototypes.

Attention is relative: the share of a tile, multiplied by the number of tiles of the bag. So 1 is even attention at any
size of the bag, and the mean over a bag is 1. Divided by the number of tiles, the values are shares and sum to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_texts, check_type
from ..models.student import StudentBranchOutput
from ..models.teacher import TeacherBranchOutput
from ..nn import DeformableAttention, SetAttention

HEAD = "_head"  # A column of one head is that of all heads with this and the number of the head.


def student_view(branch: StudentBranchOutput, subspaces: Sequence[str]) -> dict[str, Tensor]:
    """What one magnification of a student sees on the tiles of one bag.

    Args:
        branch: output of the magnification for one bag.
        subspaces: subspaces of the student, in order.

    Returns:
        Columns [N] of the real tiles, in their order:

        * the name of every subspace: 1 where the tile belongs to its prototype, else 0;
        * ``weight``: weight of the tile in its prototype, relative to the even weight in it;
        * ``attention``: attention, relative to even attention; ``attention_head1`` and so on: that of each head.

    Raises:
        ValueError: the batch holds several bags.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, Student
        >>> from disentangled_mil.explain import student_view
        >>> student = Student(8, 2, dim=16, heads=2, groups=2, dim_head=4, magnifications=["20x"]).eval()
        >>> bag = Bag.from_slide(torch.randn(5, 8))
        >>> list(student_view(student({"20x": bag}).branches["20x"], student.subspaces))
        ['tumor', 'tme', 'weight', 'attention', 'attention_head1', 'attention_head2']
    """
    check_type("branch", branch, StudentBranchOutput, "the output of a student's magnification")
    subspaces = check_texts("subspaces", subspaces)
    attention = _attention("attention", branch.attention)
    real = branch.assignment[0] >= 0
    assignment = branch.assignment[0][real]
    members = torch.bincount(assignment, minlength=len(subspaces))
    belongs = {name: (assignment == slot).double() for slot, name in enumerate(subspaces)}
    return {**belongs, "weight": branch.significance[0][real].double() * members[assignment], **attention}


def teacher_view(branch: TeacherBranchOutput) -> dict[str, Tensor]:
    """What one magnification of a teacher sees on the tiles of one bag.

    Args:
        branch: output of the magnification for one bag.

    Returns:
        Columns [N] of the real tiles, in their order: ``attention_SUBSPACE``, relative to even attention, and
        ``attention_SUBSPACE_head1`` and so on, that of each head.

    Raises:
        ValueError: the batch holds several bags.

    Example:
        >>> import torch
        >>> from disentangled_mil import Bag, Teacher
        >>> from disentangled_mil.explain import teacher_view
        >>> teacher = Teacher(8, {"tumor": 3}, 2, dim=16, heads=2, groups=2, dim_head=4, magnifications=["20x"]).eval()
        >>> out = teacher({"20x": Bag.from_slide(torch.randn(5, 8))}, {"tumor": torch.randn(1, 3)})
        >>> view = teacher_view(out.branches["20x"])
        >>> list(view), round(float(view["attention_tumor"].mean()), 4)
        (['attention_tumor', 'attention_tumor_head1', 'attention_tumor_head2'], 1.0)
    """
    check_type("branch", branch, TeacherBranchOutput, "the output of a teacher's magnification")
    columns: dict[str, Tensor] = {}
    for subspace, attention in branch.attention.items():
        columns |= _attention(f"attention_{subspace}", attention)
    return columns


def _attention(name: str, attention: DeformableAttention | SetAttention) -> dict[str, Tensor]:
    """The relative attention of the real tiles, of all heads together and of each one."""
    heads = attention.head_mass().detach()  # [B, H, N]
    if len(heads) != 1:
        raise ValueError(f"branch must be the output for one bag, got {len(heads)}")
    mask = attention.context_mask if isinstance(attention, SetAttention) else attention.context_grid.mask
    shares = heads[0][:, mask[0]].double()  # [H, N]
    relative = shares * shares.shape[1]
    apart = {f"{name}{HEAD}{number}": head for number, head in enumerate(relative, start=1)}
    return {name: relative.mean(0), **apart}
