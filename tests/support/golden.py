"""Golden numbers of the released implementation, in a folder beside the checkout."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DISENTANGLED_MIL_SHARED", REPOSITORY.parent / "shared"))


def shared_folder() -> Path:
    """The folder with golden numbers and real patients; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the golden numbers and real data of {SHARED}, which is absent")
    return SHARED


def load_golden(name: str) -> dict[str, Tensor]:
    """One golden case as tensors, e.g. ``load_golden("dpc_knn_plain")``."""
    with np.load(shared_folder() / "golden" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
