"""Quality of predictions, one entry per patient. Needs the extra ``train``."""

from .classification import classification_metrics
from .survival import survival_metrics

__all__ = ["classification_metrics", "survival_metrics"]
