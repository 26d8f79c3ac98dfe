"""The paper's teacher and student, and the baseline on genes alone."""

from .gene_network import GeneNetwork, GeneNetworkOutput
from .linear_model import LinearModel, mean_patches
from .student import Student, StudentBranchOutput, StudentOutput
from .teacher import Teacher, TeacherBranchOutput, TeacherOutput

__all__ = [
    "GeneNetwork",
    "GeneNetworkOutput",
    "LinearModel",
    "Student",
    "StudentBranchOutput",
    "StudentOutput",
    "Teacher",
    "TeacherBranchOutput",
    "TeacherOutput",
    "mean_patches",
]
