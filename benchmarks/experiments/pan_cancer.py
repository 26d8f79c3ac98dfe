"""One configuration on three cancers."""

from .experiment import Case, Experiment
from .variants import GENES, LINEAR_SLIDES, OUT_OF_FOLD, SCRATCH, TEACHER

PAN_CANCER = Experiment(
    "pan-cancer",
    "Does one configuration serve several cancers?",
    "Gliomas, kidney cancers and gastric cancers are trained with the default options of the command, without a "
    "choice for any of them. Differences are from the student from scratch.",
    (
        Case("tcga_gbmlgg", "diagnosis"),
        Case("tcga_gbmlgg", "grading"),
        Case("tcga_gbmlgg", "survival"),
        Case("tcga_kirc", "grading"),
        Case("tcga_kirc", "survival"),
        Case("tcga_stad", "msi"),
        Case("tcga_stad", "subtype"),
    ),
    (GENES, TEACHER, SCRATCH, OUT_OF_FOLD, LINEAR_SLIDES),
    "scratch",
)
