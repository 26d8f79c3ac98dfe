"""Models of timm as encoders. Needs timm, which no extra brings."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import first_of
from .tiles import TILE

_Colors = tuple[float, float, float]


def timm_encoder(name: str, weights: Path | None, stage: int | None) -> tuple[nn.Module, _Colors, _Colors]:
    """A model of timm without classifier, and mean and standard deviation of the colors that it was trained with."""
    try:
        timm: Any = import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; pip install timm", name=error.name) from error
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file of weights")
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
        if weights is not None:
            missing = timm.models.load_checkpoint(model, str(weights), strict=False).missing_keys
            if missing:
                raise ValueError(f"{weights} lacks {first_of(missing)}")
        config = timm.data.resolve_model_data_config(model)
        side = config["input_size"][-1]
        if side != TILE and model.pretrained_cfg.get("fixed_input_size"):
            raise ValueError(f"its tiles have {side} pixels, not {TILE}")
        encoder = model if stage is None else _Averaged(model, stage)
        encoder.eval()(torch.zeros(1, 3, TILE, TILE))
    except (ValueError, RuntimeError, OSError, AttributeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"encoder timm:{name} must be a model of timm with weights and the stage: {reason}") from error
    return encoder, config["mean"], config["std"]


class _Averaged(nn.Module):
    """The mean over the tile of one feature map of a network."""

    def __init__(self, network: nn.Module, stage: int) -> None:
        super().__init__()
        self.network, self.stage = network, stage

    def forward(self, tiles: Tensor) -> Tensor:
        """Features [B, D]."""
        run: Any = self.network.forward_intermediates
        (features,) = run(tiles, indices=[self.stage], stop_early=True, intermediates_only=True)
        mean: Tensor = features.mean((2, 3))
        return mean
