"""Another scanner, in seven strengths."""

from .baselines import ABMIL
from .experiment import Case, Experiment
from .variants import IN_SAMPLE, LINEAR_SLIDES, OUT_OF_FOLD, SCRATCH, TEACHER

SHIFT = Experiment(
    "shift",
    "What does another scanner cost?",
    "Models are trained on planted slides of one scanner and tested on the same new patients through scanners of "
    "seven strengths: fixed random mixing, gain, offset and noise of the features. Labels and genes do not change. "
    "Differences are from the student from scratch at the same strength.",
    (Case("planted-shifted", "diagnosis"),),
    (TEACHER, SCRATCH, IN_SAMPLE, OUT_OF_FOLD, LINEAR_SLIDES, ABMIL),
    "scratch",
    figure="strengths",
)
