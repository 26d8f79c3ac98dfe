"""The reference training: both stages of the method, whole runs, predictions. Needs the extra ``train``."""

from .checkpoint import load_model, save_model
from .experiment import Result, Split, run_split
from .metrics import classification_metrics, survival_metrics
from .options import TrainingOptions
from .predict import predict_slides
from .runs import run_cross_validation, run_demo

__all__ = [
    "Result",
    "Split",
    "TrainingOptions",
    "classification_metrics",
    "load_model",
    "predict_slides",
    "run_cross_validation",
    "run_demo",
    "run_split",
    "save_model",
    "survival_metrics",
]
