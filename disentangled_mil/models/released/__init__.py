"""Reads the method's released checkpoints. Their conventions live here and nowhere else.

A released model lays the gene vector alone on every cell, fuses the subspaces' maps before it selects,
attends to a single gene token, leaves prototypes in the order of their peak scores, measures positions in a
way that is right for full squares only, and gates by the softmax of the logits whatever they mean. Its
outputs have the types of :class:`~disentangled_mil.Teacher` and :class:`~disentangled_mil.Student`.
"""

from ._modules import ReleasedStudent, ReleasedTeacher
from ._positions import ReleasedPositions
from ._reading import load_released, released_student, released_teacher

__all__ = [
    "ReleasedPositions",
    "ReleasedStudent",
    "ReleasedTeacher",
    "load_released",
    "released_student",
    "released_teacher",
]
