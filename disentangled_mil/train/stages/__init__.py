"""The stages of the method: what one training step of each model is."""

from .genes import GeneStage
from .stage import Stage, StageLoss
from .student import StudentStage
from .teacher import BranchOutputs, TeacherOutputs, TeacherStage

__all__ = ["BranchOutputs", "GeneStage", "Stage", "StageLoss", "StudentStage", "TeacherOutputs", "TeacherStage"]
