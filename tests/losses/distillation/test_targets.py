"""Targets of distillation: detached, stacked, selected and stored."""

import math

import pytest
import torch

from disentangled_mil.losses import (
    DistillationTargets,
)
from tests.support.distillation import teacher


def test_targets_are_detached_float32_stacked_in_order_and_zero_where_absent():
    tumor = torch.full((2, 3), 1.0, dtype=torch.float64, requires_grad=True)
    tme = torch.full((2, 3), math.nan, dtype=torch.float64)
    present = torch.tensor([True, False])
    targets = DistillationTargets.from_teacher(tumor[:, :2] * 5, {"tme": tme, "tumor": tumor}, present=present)
    assert targets.logits.tolist() == [[5, 5], [0, 0]]
    assert targets.subspaces.dtype == torch.float32
    assert not targets.subspaces.requires_grad
    assert targets.subspaces[0, 1].tolist() == [1, 1, 1]
    assert (targets.subspaces[1] == 0).all()
    ordered = DistillationTargets.from_teacher(tumor, {"tme": tme, "tumor": tumor}, subspaces=("tumor", "tme"))
    assert ordered.subspaces[:, 0].tolist() == tumor.tolist()
    chosen = targets.select(torch.tensor([1, 1, 0])).to("cpu")
    assert chosen.present.tolist() == [False, False, True]
    assert chosen.logits.tolist() == [[0, 0], [0, 0], [5, 5]]


def test_targets_are_loaded_from_a_file_of_weights_only(tmp_path, generator):
    targets = teacher(generator)
    torch.save(targets, tmp_path / "targets.pt")
    loaded = torch.load(tmp_path / "targets.pt", weights_only=True)
    assert type(loaded) is DistillationTargets
    assert loaded.shares is targets.shares is None
    for name in ("logits", "present", "subspaces"):
        assert torch.equal(getattr(loaded, name), getattr(targets, name))


def test_errors_name_the_argument() -> None:
    logits, vectors = torch.zeros(2, 4), torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"features must have exactly the names \['tumor'\], got \['tme'\]"):
        DistillationTargets.from_teacher(logits, {"tme": vectors[:, 0]}, subspaces=["tumor"])
    with pytest.raises(ValueError, match=r"features must have at least one subspace, got none"):
        DistillationTargets.from_teacher(logits, {})
    with pytest.raises(ValueError, match=r"features\['tme'\] must have shape \[B, C\] = \[2, 5\], got \[2, 4\]"):
        DistillationTargets.from_teacher(logits, {"tumor": torch.zeros(2, 5), "tme": torch.zeros(2, 4)})
    with pytest.raises(TypeError, match=r"present must be a bool tensor .*, got torch\.int64"):
        DistillationTargets.from_teacher(logits, {"tumor": torch.zeros(2, 5)}, present=torch.ones(2, dtype=torch.int64))


def test_an_index_that_selects_no_sample_is_refused(generator):
    targets = DistillationTargets.from_teacher(torch.zeros(4, 2), None, present=torch.ones(4, dtype=torch.bool))
    with pytest.raises(IndexError, match=r"^index must select some of the 4 samples: "):
        targets.select([5])
    with pytest.raises(TypeError, match=r"^index must be a tensor of indices or a bool mask, got str$"):
        targets.select("5")
