"""Patients without RNA, teachers that lose a subspace, and genes that are missing at the test."""

from .changes import DroppedSubspaces, LessExpression, MissingAtTest, Only, paired_only
from .experiment import Case, Experiment, Variant
from .training import Training
from .variants import SCRATCH, TEACHER

_MISSING = (0.1, 0.3, 0.5)

UNPAIRED = Experiment(
    "unpaired",
    "What do unpaired patients, lost subspaces and missing genes do?",
    "Students train with and without the patients who have no RNA, and with half of the RNA taken away. Teachers "
    "train on one subspace alone, or with one of two subspaces lost in a third of the patients. At the test, genes "
    "are missing and are imputed by the training mean: 10, 30 or 50 % of all genes, or a whole subspace. Differences "
    "are from the student from scratch.",
    (
        Case("tcga_gbmlgg", "grading"),
        Case("tcga_gbmlgg", "survival"),
        Case("tcga_stad", "msi"),
        Case("planted", "diagnosis"),
    ),
    (
        SCRATCH,
        Variant("scratch, paired patients only", Training(("student",), change=paired_only)),
        Variant(
            "scratch, half of the paired patients", Training(("student",), change=LessExpression(0.5, drop_others=True))
        ),
        TEACHER,
        Variant("teacher, tumor genes only", Training(("teacher",), change=Only("tumor"))),
        Variant("teacher, TME genes only", Training(("teacher",), change=Only("tme"))),
        Variant("teacher, genes missing", Training(("teacher",), change=MissingAtTest(_MISSING))),
        Variant(
            "teacher, subspaces lost in training",
            Training(("teacher",), change=MissingAtTest(_MISSING, DroppedSubspaces(1 / 3))),
        ),
    ),
    "scratch",
    pairs=(("teacher, subspaces lost in training", "teacher, genes missing"),),
)
