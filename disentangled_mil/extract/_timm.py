"""Models of timm as encoders. Needs timm, which no extra brings."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .tiles import TILE

_ImageNet = tuple[float, float, float]


def timm_encoder(name: str, weights: Path | None, stage: int | None) -> tuple[nn.Module, _ImageNet, _ImageNet]:
    """A model of timm without classifier, and mean and standard deviation of the colors that it was trained with."""
    try:
        timm: Any = import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; pip install timm", name=error.name) from error
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file of weights")
    # Weights of a whole network are cut to the parts that are used, those of a file too.
    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    parts = {"num_classes": 0} if stage is None else {"features_only": True, "out_indices": (stage,)}
    try:
        model = timm.create_model(name, pretrained=True, **overlay, **parts)
    except (RuntimeError, OSError, IndexError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"encoder timm:{name} must be a model of timm with weights: {reason}") from error
    config = timm.data.resolve_model_data_config(model)
    side = config["input_size"][-1]
    if model.pretrained_cfg.get("fixed_input_size") and side != TILE:
        raise ValueError(f"encoder timm:{name} must take tiles of {TILE} pixels, got {side}")
    return model if stage is None else _Averaged(model), config["mean"], config["std"]


class _Averaged(nn.Module):
    """The mean over the tile of the one feature map that a network returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: Tensor) -> Tensor:
        """Features [B, D]."""
        (features,) = self.network(tiles)
        mean: Tensor = features.mean((2, 3))
        return mean
