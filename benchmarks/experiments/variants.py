"""Variants that several experiments share; their runs are stored once."""

from .experiment import Variant
from .linear import Linear
from .training import Training

SCRATCH = Variant("scratch", Training(("student",)))
TEACHER = Variant("teacher", Training(("teacher",)))
GENES = Variant("genes", Training(("genes",)))
# The targets of the paper: one teacher that has trained on the student's patients, subspace vectors included.
IN_SAMPLE = Variant(
    "in-sample", Training(("teacher", "distilled"), {"distill": "always", "distillation_targets": "in_sample"})
)
OUT_OF_FOLD = Variant("out-of-fold", Training(("distilled",), {"distill": "always"}))

LINEAR_SLIDES = Variant("linear, slides", Linear(("slides",)))
LINEAR_GENES = Variant("linear, genes", Linear(("genes",)))
LATE_FUSION = Variant("late fusion", Linear(("slides", "genes")))
