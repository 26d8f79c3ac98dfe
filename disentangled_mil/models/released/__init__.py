"""Readers of the released checkpoints of the method. Their conventions live here and nowhere else.

A released model lays the gene vector alone on every cell and fuses the maps of the subspaces before it selects. It
attends to a single gene token and leaves prototypes in the order of their peak scores. It measures positions in a way
that is right for full squares only, and gates by the softmax of the logits for any task. Its outputs have the types of
:class:`~disentangled_mil.Teacher` and :class:`~disentangled_mil.Student`.
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
