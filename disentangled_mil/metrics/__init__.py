"""Quality of predictions, one entry per patient. Needs the extra ``train``."""

from .classification import classification_auc, classification_metrics
from .paired import PairedDifference, bootstrap_patients, paired_difference
from .survival import survival_concordance, survival_metrics

__all__ = [
    "PairedDifference",
    "bootstrap_patients",
    "classification_auc",
    "classification_metrics",
    "paired_difference",
    "survival_concordance",
    "survival_metrics",
]
