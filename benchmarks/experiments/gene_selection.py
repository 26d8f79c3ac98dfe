"""How many genes, which, and what happens if they are chosen on the test patients too."""

from .changes import ChosenByLabel, ChosenOnAll, PipelineOptions, RandomGenes
from .experiment import Case, Experiment, Variant
from .training import Change, Training

_SHARES = (0.1, 0.2, 0.3, 0.5, 0.8)


def _genes(name: str, change: Change, *cohorts: str) -> Variant:
    return Variant(f"genes, {name}", Training(("genes",), change=change), cohorts)


def _by_label(cohort: str, task: str) -> tuple[Variant, ...]:
    """Genes chosen by the labels of a task, on the training patients and on all."""
    return tuple(
        Variant(
            f"genes, 5% by {task} of {patients} patients",
            Training(("genes",), change=ChosenByLabel(0.05, leak, task)),
            (cohort,),
            without_tasks=("survival",),
        )
        for patients, leak in (("training", False), ("all", True))
    )


GENE_SELECTION = Experiment(
    "gene-selection",
    "How many genes, and chosen how?",
    "The network on genes alone gets a share of every gene set: the most variable genes, random ones, or the best by "
    "other statistics. Differences are from the 30 % most variable genes. To show leakage, genes are chosen once "
    "inside the training fold and once on all patients, by variance and by their labels. Values are unscaled "
    "(planted, and TPM of 90 glioblastomas), because in a table of z-scores all genes are equally variable.",
    (Case("planted", "diagnosis"), Case("tcga_gbm", "purity"), Case("tcga_gbm", "survival")),
    (
        *(_genes(f"{share:.0%} variance", PipelineOptions({"fraction": share})) for share in _SHARES),
        *(_genes(f"{share:.0%} random", RandomGenes(share)) for share in _SHARES),
        *(_genes(f"30% {s}", PipelineOptions({"fraction": 0.3, "statistic": s})) for s in ("mad", "dispersion")),
        _genes("30% variance of all patients", ChosenOnAll(0.3)),
        *_by_label("planted", "diagnosis"),
        *_by_label("tcga_gbm", "purity"),
    ),
    "genes, 30% variance",
    pairs=(
        *(
            (f"genes, 5% by {task} of all patients", f"genes, 5% by {task} of training patients")
            for task in ("diagnosis", "purity")
        ),
        *((f"genes, {share:.0%} variance", f"genes, {share:.0%} random") for share in _SHARES),
    ),
    figure="shares",
)
