"""Prototypes and attention against true regions."""

from .experiment import Case, Experiment, Variant
from .looks import Looks

WHERE_IT_LOOKS = Experiment(
    "where-it-looks",
    "Do prototypes and attention find the tumor?",
    "Held-out slides are compared with their true regions, patch by patch. A prototype is a set of patches, so its "
    "overlap with the tumor is a Dice coefficient: of the prototype named tumor, and of the better of the two. "
    "Attention is a score, so it is an AUROC: 0.5 is chance. Two clusters of the raw patches and calling every patch "
    "tumor are the floors. The features of the kidney slides were computed from the true maps, so only the method's "
    "use of them is tested there.",
    (Case("planted", "diagnosis"), Case("tcga_kirc", "survival")),
    tuple(Variant(f"looks, {model}", Looks(model)) for model in ("k-means", "student", "distilled", "teacher")),
    "looks, student",
    figure="maps",
    columns=(
        *(f"{name}, {size}" for size in ("20x", "fine") for name in ("Dice", "Dice, best name", "Dice, all tumor")),
        *(
            f"AUROC {view}, {size}"
            for size in ("20x", "fine")
            for view in ("attention", "attention tumor", "attention tme")
        ),
    ),
)
