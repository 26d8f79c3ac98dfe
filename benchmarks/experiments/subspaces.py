"""Which subspaces, and whether they hold different things."""

from .changes import Hallmark, one_subspace, shuffled_subspaces
from .experiment import Case, Experiment, Variant
from .measures import subspaces_apart
from .training import Change, Training
from .variants import ALONE

# Gene symbols of the real cohorts; planted genes belong to no Hallmark set.
_REAL = ("tcga_stad", "tcga_gbmlgg")
_THREE = {
    "growth": ("E2F_TARGETS", "G2M_CHECKPOINT", "MYC_TARGETS_V1", "MITOTIC_SPINDLE"),
    "immune": ("INFLAMMATORY_RESPONSE", "INTERFERON_GAMMA_RESPONSE", "ALLOGRAFT_REJECTION", "COMPLEMENT"),
    "stroma": ("EPITHELIAL_MESENCHYMAL_TRANSITION", "ANGIOGENESIS", "HYPOXIA", "COAGULATION"),
}
_EIGHT = {
    "cycle": ("E2F_TARGETS", "G2M_CHECKPOINT"),
    "myc": ("MYC_TARGETS_V1", "MYC_TARGETS_V2", "MTORC1_SIGNALING"),
    "damage": ("DNA_REPAIR", "P53_PATHWAY", "APOPTOSIS"),
    "metabolism": ("OXIDATIVE_PHOSPHORYLATION", "GLYCOLYSIS", "FATTY_ACID_METABOLISM"),
    "signaling": ("KRAS_SIGNALING_UP", "PI3K_AKT_MTOR_SIGNALING", "WNT_BETA_CATENIN_SIGNALING"),
    "interferon": ("INTERFERON_ALPHA_RESPONSE", "INTERFERON_GAMMA_RESPONSE"),
    "inflammation": ("INFLAMMATORY_RESPONSE", "TNFA_SIGNALING_VIA_NFKB", "ALLOGRAFT_REJECTION"),
    "stroma": ("EPITHELIAL_MESENCHYMAL_TRANSITION", "ANGIOGENESIS", "HYPOXIA"),
}


def _teacher(name: str, change: Change | None = None, *cohorts: str) -> Variant:
    return Variant(f"subspaces, {name}", Training(("teacher",), ALONE, change, measures=(subspaces_apart,)), cohorts)


SUBSPACES = Experiment(
    "subspaces",
    "Do subspaces separate programs, and does it matter which genes they get?",
    "The teacher, a network without a linear model beside it, gets its genes as one subspace, as tumor and "
    "microenvironment, in the same two sizes but shuffled, and as three or eight groups of Hallmark sets. A linear "
    "probe predicts programs from each subspace vector. For planted patients a program is the planted one, and "
    "otherwise the mean of a subspace's scaled genes. Linear CKA says how alike the vectors of two subspaces are.",
    (Case("planted", "diagnosis"), Case("tcga_stad", "subtype"), Case("tcga_gbmlgg", "grading")),
    (
        _teacher("two"),
        _teacher("one", one_subspace),
        _teacher("two shuffled", shuffled_subspaces),
        _teacher("3 Hallmark", Hallmark(_THREE), *_REAL),
        _teacher("8 Hallmark", Hallmark(_EIGHT), *_REAL),
    ),
    "subspaces, two",
    columns=("R2 own program", "R2 other programs", "CKA"),
)
