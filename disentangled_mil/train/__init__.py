"""The reference training: both stages of the method, whole runs, predictions. Needs the extra ``train``."""

from .._extras import naming_extra

with naming_extra("train"):
    from .calibration import fit_temperature
    from .checkpoint import SavedModel, load_model, save_model
    from .cross_fitting import Part, cross_fit
    from .cross_validation import run_cross_validation
    from .demo import run_demo
    from .experiment import Result, Split, run_split
    from .join_folds import join_folds
    from .options import TrainingOptions
    from .predict import predict_slides
    from .training import MODELS, Trained, train_models

__all__ = [
    "MODELS",
    "Part",
    "Result",
    "SavedModel",
    "Split",
    "Trained",
    "TrainingOptions",
    "cross_fit",
    "fit_temperature",
    "join_folds",
    "load_model",
    "predict_slides",
    "run_cross_validation",
    "run_demo",
    "run_split",
    "save_model",
    "train_models",
]
