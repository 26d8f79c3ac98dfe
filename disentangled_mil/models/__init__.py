"""The paper's teacher and student, and the baseline on genes alone."""

from torch.serialization import add_safe_globals

from .gene_network import GeneNetwork, GeneNetworkOutput
from .linear_model import LinearModel, PatchStatistics, patch_statistics
from .student import Student, StudentBranchOutput, StudentOutput
from .teacher import Teacher, TeacherBranchOutput, TeacherOutput

__all__ = [
    "GeneNetwork",
    "GeneNetworkOutput",
    "LinearModel",
    "PatchStatistics",
    "Student",
    "StudentBranchOutput",
    "StudentOutput",
    "Teacher",
    "TeacherBranchOutput",
    "TeacherOutput",
    "patch_statistics",
]

# Outputs can be loaded by ``torch.load(weights_only=True)``, its default, which runs no code of the file.
add_safe_globals([GeneNetworkOutput, StudentBranchOutput, StudentOutput, TeacherBranchOutput, TeacherOutput])
