"""Models of others on the same features and folds."""

from typing import Any

from .experiment import Case, Experiment, Variant
from .networks import Concatenation, GatedABMIL, GatedBilinear, MeanPool, Network, NystromTransMIL
from .training import Training, prediction_cost
from .variants import ALONE, LATE_FUSION, LINEAR_GENES, LINEAR_SLIDES

ABMIL = Variant("ABMIL", Network(GatedABMIL))


def _ours(name: str, model: str, **options: Any) -> Variant:
    return Variant(f"timed {name}", Training((model,), options, measures=(prediction_cost,)))


BASELINES = Experiment(
    "baselines",
    "How do other models do on the same features and folds?",
    "Every model gets the same bags, genes, patients and folds, and the same epochs and learning rate as this "
    "package. ABMIL and TransMIL are those of torchmil, linear models the floor of this package. Models on "
    "slides also train on patients without RNA. Time is that of one thread: training per training patient, and the "
    "prediction of one patient; memory is the peak of that prediction above its inputs. Networks of others see the "
    "first magnification. Student and teacher average a network with a linear model, or are a network alone.",
    (
        Case("tcga_stad", "msi"),
        Case("tcga_stad", "subtype"),
        Case("tcga_gbmlgg", "diagnosis"),
        Case("tcga_gbmlgg", "grading"),
        Case("tcga_gbmlgg", "survival"),
        Case("planted", "diagnosis"),
    ),
    (
        _ours("student", "student"),
        _ours("student, network alone", "student", **ALONE),
        _ours("teacher", "teacher"),
        _ours("teacher, network alone", "teacher", **ALONE),
        _ours("genes (SNN)", "genes"),
        LINEAR_SLIDES,
        Variant("mean pooling", Network(MeanPool)),
        ABMIL,
        Variant("TransMIL", Network(NystromTransMIL)),
        LINEAR_GENES,
        LATE_FUSION,
        Variant("concatenation", Network(Concatenation, genes=True)),
        Variant("gated bilinear", Network(GatedBilinear, genes=True)),
    ),
    "timed student",
    columns=("training s per patient", "prediction ms", "memory MB"),
)
