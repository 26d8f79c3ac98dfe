"""Stage I without and with its components."""

from .experiment import Case, Experiment, Variant
from .measures import attention_entropy, confidences, conflicts
from .training import Training
from .variants import ALONE

# Consistency compares two magnifications, which these cohorts have.
_TWO_MAGNIFICATIONS = ("planted", "tcga_kirc")
_OFF, _ON = 0.0, 1.0


def _stage_one(*components: str) -> Variant:
    """A teacher with some components; a single gene token leaves nothing to select."""
    options = {
        **ALONE,
        "cgc": "CGC" in components,
        "consistency_weight": _ON if "IGC" in components else _OFF,
        "gene_tokens": 4 if "selection" in components else 1,
    }
    method = Training(("teacher",), options, measures=(conflicts, confidences, attention_entropy))
    name = f"stage I, {' + '.join(components) or 'none'}"
    return Variant(name, method, _TWO_MAGNIFICATIONS if "IGC" in components else ())


ABLATION = Experiment(
    "ablation",
    "Does each component of stage I help the teacher?",
    "The network of the teacher, without a linear model beside it, is trained with none, one, two or all of its "
    "components: coordinated gradients (CGC), consistency between magnifications (IGC), and selection among four gene "
    "tokens instead of one. Differences are from the teacher with none. Consistency needs two magnifications, which "
    "the planted and the kidney slides have.",
    (
        Case("planted", "diagnosis"),
        Case("tcga_stad", "subtype"),
        Case("tcga_gbmlgg", "grading"),
        Case("tcga_kirc", "survival"),
    ),
    (
        _stage_one(),
        _stage_one("CGC"),
        _stage_one("IGC"),
        _stage_one("selection"),
        _stage_one("CGC", "IGC"),
        _stage_one("CGC", "selection"),
        _stage_one("IGC", "selection"),
        _stage_one("CGC", "IGC", "selection"),
    ),
    "stage I, none",
    columns=("conflicts", "confidence tumor", "confidence tme", "entropy tumor", "entropy tme"),
)
