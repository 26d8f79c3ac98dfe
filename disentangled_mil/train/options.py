"""The options of the reference training."""

from dataclasses import asdict, dataclass

from .._checks import check_choice, check_count, check_flag, check_interval, check_type
from .._extras import naming_extra
from ..nn.gate import RULES

DISTILL = ("auto", "always", "never")
TARGETS = ("out_of_fold", "in_sample")
LOGS = ("csv", "tensorboard")
# Options that change no number of a run.
WITHOUT_EFFECT = ("device", "log")

_LARGEST_SEED = 2**32 - 1  # of NumPy's generators


@dataclass(frozen=True)
class TrainingOptions:
    """Sizes and settings of the reference training.

    Args:
        dim: token width C.
        heads: number of attention heads, and of offset groups.
        dim_head: width of a head.
        gene_tokens: gene tokens per subspace.
        dropout: dropout of patch tokens and attention.
        gene_dropout: dropout of the gene layers.
        epochs: passes of each stage over its training samples.
        batch_size: samples per step.
        learning_rate: peak of the cosine schedule.
        lr_warmup: share of all steps in which the learning rate rises linearly.
        weight_decay: weight decay of AdamW for the teacher and the network on genes.
        student_weight_decay: weight decay of AdamW for the students. Slides tell less than genes, so a few hundred
            patients overfit a student whose weights are hardly decayed.
        validation: share of the training patients that choose the epoch to keep; 0 keeps the last one.
        task_warmup: share of the student's epochs on the task alone, before distillation; the last epoch distills.
        consistency_weight: weight of the inter-magnification consistency.
        prediction_weight: weight of the divergence from the teacher's predictions; the task loss has weight 1.
        representation_weight: weight of the error between prototypes and subspaces, for targets ``"in_sample"``.
        share_weight: weight of the error between shares of the logits.
        temperature: temperature of the distilled predictions.
        distill: ``"auto"`` trains a distilled student where the out-of-fold teacher is better than a linear model on
            the slides, with the 95 % interval of the difference above 0; ``"always"`` or ``"never"``.
        distillation_targets: ``"out_of_fold"`` takes the targets of each patient from teachers that have not seen
            that patient. ``"in_sample"`` takes them from the one teacher of all training patients, as the paper does;
            only this one has subspace vectors.
        teacher_folds: folds of the training patients for targets out of fold; one teacher is trained for each.
        teacher_repeats: repeats with other folds, whose targets are averaged.
        training_tokens: largest number of tokens of a bag, at each magnification, in a step of the training. Every
            epoch sees another part of a larger bag, spread evenly over the tissue. Predictions see all tokens.
        teacher_tokens: largest number of tokens of a bag, at each magnification, for teachers of targets out of fold;
            larger bags are thinned evenly over the tissue. These are most of the networks of a run.
        calibrate: flag that divides logits out of fold by the temperature that fits the labels best.
        linear: share of a linear model in the logits, on mean and standard deviation of the patches, and in the teacher
            on genes; 0 leaves it out.
        cgc: flag that coordinates the gradients of the subspaces; a single subspace has nothing to coordinate.
        gate: rule that combines magnifications; the paper's is ``"max_confidence"``.
        seed: seed of initialization, order of samples, dropout and inner split, less than 2^32.
        device: device of the training.
        log: ``"csv"``, or ``"tensorboard"`` to write the epochs for TensorBoard as well, with the extra of this name.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed and ``log`` names it.
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.
    """

    dim: int = 32
    heads: int = 4
    dim_head: int = 8
    gene_tokens: int = 1
    dropout: float = 0.4
    gene_dropout: float = 0.1
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 5e-4
    lr_warmup: float = 0.1
    weight_decay: float = 0.05
    student_weight_decay: float = 20.0
    validation: float = 0.0
    task_warmup: float = 0.3
    consistency_weight: float = 1.0
    prediction_weight: float = 3.0
    representation_weight: float = 0.1
    share_weight: float = 1.0
    temperature: float = 2.0
    distill: str = "auto"
    distillation_targets: str = "out_of_fold"
    teacher_folds: int = 5
    teacher_repeats: int = 1
    training_tokens: int = 1000
    teacher_tokens: int = 500
    calibrate: bool = False
    linear: float = 0.5
    cgc: bool = True
    gate: str = "softmax_average"
    seed: int = 0
    device: str = "cpu"
    log: str = "csv"

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "heads",
            "dim_head",
            "gene_tokens",
            "epochs",
            "batch_size",
            "teacher_repeats",
            "training_tokens",
            "teacher_tokens",
        ):
            check_count(name, getattr(self, name))
        check_count("teacher_folds", self.teacher_folds, minimum=2)
        check_flag("calibrate", self.calibrate)
        check_flag("cgc", self.cgc)
        check_choice("distill", self.distill, DISTILL)
        check_choice("distillation_targets", self.distillation_targets, TARGETS)
        check_count("seed", self.seed, minimum=0)
        check_interval("seed", self.seed, 0, _LARGEST_SEED)
        check_choice("gate", self.gate, RULES)
        check_type("device", self.device, str, "text")
        check_choice("log", self.log, LOGS)
        if self.log == "tensorboard":
            with naming_extra("tensorboard"):
                import tensorboard  # noqa: F401
        for name in ("dropout", "gene_dropout", "lr_warmup", "task_warmup", "linear"):
            check_interval(name, getattr(self, name), 0, 1)
        check_interval("validation", self.validation, 0, 0.9)
        check_interval("learning_rate", self.learning_rate, 0, float("inf"), open_low=True)
        check_interval("temperature", self.temperature, 0, float("inf"), open_low=True)
        for name in (
            "weight_decay",
            "student_weight_decay",
            "consistency_weight",
            "prediction_weight",
            "representation_weight",
            "share_weight",
        ):
            check_interval(name, getattr(self, name), 0, float("inf"))
        for name, value in asdict(self).items():
            if value == float("inf"):
                raise ValueError(f"{name} must be finite, got {value}")
