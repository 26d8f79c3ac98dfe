"""Variants that several experiments share; their runs are stored once."""

from disentangled_mil.train.linear import GENES as GENES_ONLY
from disentangled_mil.train.linear import SLIDES

from .experiment import Variant
from .linear import Linear
from .training import Training

SCRATCH = Variant("scratch", Training(("student",)))
TEACHER = Variant("teacher", Training(("teacher",)))
GENES = Variant("genes", Training(("genes",)))
# Teachers and students without the linear model, which the paper does not have.
ALONE = {"linear": 0.0}
# The paper's targets: those of one teacher that has trained on the student's patients, subspace vectors included.
PUBLISHED = {"distill": "always", "distillation_targets": "in_sample"}
CROSS_FITTED = {"distill": "always", "distillation_targets": "out_of_fold"}
IN_SAMPLE = Variant("in-sample", Training(("teacher", "distilled"), PUBLISHED))
OUT_OF_FOLD = Variant("out-of-fold", Training(("distilled",), CROSS_FITTED))
SCRATCH_ALONE = Variant("scratch, network alone", Training(("student",), ALONE))
IN_SAMPLE_ALONE = Variant("in-sample, network alone", Training(("teacher", "distilled"), {**PUBLISHED, **ALONE}))
OUT_OF_FOLD_ALONE = Variant("out-of-fold, network alone", Training(("distilled",), {**CROSS_FITTED, **ALONE}))

LINEAR_SLIDES = Variant("linear, slides", Linear((SLIDES,)))
LINEAR_GENES = Variant("linear, genes", Linear((GENES_ONLY,)))
LATE_FUSION = Variant("late fusion", Linear((SLIDES, GENES_ONLY)))
