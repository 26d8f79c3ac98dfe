"""The options of the expression pipeline."""

from dataclasses import dataclass

from .._checks import check_choice, check_flag, check_interval
from ._scale import SCALES
from ._variable_genes import STATISTICS

DUPLICATES = ("error", "mean", "max", "first")
MISSING = ("error", "impute")
LOGARITHMIC = ("log", "centered", "z-scores")  # scales of values that must not be logged again


@dataclass(frozen=True)
class ExpressionOptions:
    """How genes are chosen and scaled.

    Args:
        log1p: flag that takes the logarithm of the values first, for counts, FPKM or TPM; False for values that are
            log-transformed or z-scored already.
        fraction: share of each gene set to keep, in (0, 1].
        statistic: ranking of the genes: ``"variance"`` of the limited values; ``"mad"``, the median absolute deviation;
            or ``"dispersion"`` (Seurat's choice), for values >= 0. Dispersion is log(variance / mean) of the values
            before log1p, standardized within 20 bins of log1p(mean) over the genes of all subspaces.
        clip: limit in robust standard deviations from the median; None for no limit.
        duplicates: treatment of several columns with one symbol, before log1p: ``"error"``, ``"mean"``, ``"max"`` or
            ``"first"``.
        missing: treatment of a gene that a later table lacks: ``"error"``, or ``"impute"`` by the training mean, which
            is 0 after scaling.
        scale: scale of the table: ``"recognized"`` from the training patients, and refused where ``log1p`` contradicts
            it; or the scale itself, which is then believed: ``"counts"``, ``"linear"`` (TPM, FPKM), ``"log"``,
            ``"centered"`` (log-ratios), ``"z-scores"``, ``"fractions"`` or ``"unknown"``.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range, or ``log1p`` contradicts ``scale``.

    Example:
        >>> from disentangled_mil.data.expression_options import ExpressionOptions
        >>> ExpressionOptions(fraction=0.0)
        Traceback (most recent call last):
        ValueError: fraction must lie in (0, 1], got 0.0
    """

    log1p: bool = True
    fraction: float = 0.3
    statistic: str = "variance"
    clip: float | None = 10.0
    duplicates: str = "error"
    missing: str = "error"
    scale: str = "recognized"

    def __post_init__(self) -> None:
        check_flag("log1p", self.log1p)
        check_interval("fraction", self.fraction, 0, 1, open_low=True)
        check_choice("statistic", self.statistic, STATISTICS)
        if self.clip is not None:
            check_interval("clip", self.clip, 0, 1e6, open_low=True)
        check_choice("duplicates", self.duplicates, DUPLICATES)
        check_choice("missing", self.missing, MISSING)
        check_choice("scale", self.scale, ("recognized", *SCALES))
        if self.log1p and self.scale in LOGARITHMIC:
            raise ValueError(f"log1p must be False for scale {self.scale!r}, got True")
