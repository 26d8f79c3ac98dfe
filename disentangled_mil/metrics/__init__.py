"""Quality of predictions, one entry per patient. Needs the extra ``train``."""

from .classification import classification_auc, classification_metrics
from .paired import Interval, PairedDifference, bootstrap_patients, paired_difference, percentile_interval
from .survival import survival_concordance, survival_metrics

__all__ = [
    "Interval",
    "PairedDifference",
    "bootstrap_patients",
    "classification_auc",
    "classification_metrics",
    "paired_difference",
    "percentile_interval",
    "survival_concordance",
    "survival_metrics",
]
