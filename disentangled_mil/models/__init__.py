"""The paper's teacher and student, and the baseline on genes alone."""

from .gene_network import GeneNetwork, GeneNetworkOutput
from .student import Student, StudentBranchOutput, StudentOutput
from .teacher import Teacher, TeacherBranchOutput, TeacherOutput

__all__ = [
    "GeneNetwork",
    "GeneNetworkOutput",
    "Student",
    "StudentBranchOutput",
    "StudentOutput",
    "Teacher",
    "TeacherBranchOutput",
    "TeacherOutput",
]
