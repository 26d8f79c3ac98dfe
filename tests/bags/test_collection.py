"""Bags, grids and targets behave as collections of tensors do."""

import io

import pytest
import torch
from torch import Tensor

from disentangled_mil import Bag, DiscreteSurvival, DistillationTargets, Grid, Teacher, TokenSet
from tests.support.trees import leaves


def _placed() -> Bag:
    coords = torch.tensor([[0, 0], [448, 0], [0, 224]])
    return Bag.from_slide(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), coords, step=224)


def _teacher_output(bag: Bag, **options: str) -> object:
    genes = {"tumor": torch.ones(1, 2), "tme": torch.ones(1, 3)}
    sizes = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4, "selection_heads": 2}
    teacher = Teacher(4, {"tumor": 2, "tme": 3}, 2, magnifications=["20x"], **sizes, **options)
    return teacher.eval()({"20x": bag}, genes)


VALUES = {
    "bag": _placed,
    "set": lambda: Bag.from_slide(torch.ones(3, 4)),
    "grid": lambda: _placed().grid,
    "token set": lambda: TokenSet.of([2, 3]),
    "survival target": lambda: DiscreteSurvival.fit([1.0, 2.0, 3.0, 4.0], event=[1] * 4).target([1.0], event=[1]),
    "distillation targets": lambda: DistillationTargets.from_teacher(torch.ones(2, 3)),
    "output of a teacher": lambda: _teacher_output(_placed()),
    "output of a teacher with exact bias": lambda: _teacher_output(_placed(), bias="exact"),
    "output of a teacher of sets": lambda: _teacher_output(Bag.from_slide(torch.ones(3, 4))),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_file_is_loaded_without_running_code(name: str) -> None:
    value, file = VALUES[name](), io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(value)
    for one, other in zip(leaves(loaded), leaves(value), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["bag", "set", "grid", "token set", "distillation targets"])
def test_values_move_without_waiting(name: str) -> None:
    moved = VALUES[name]().to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in leaves(moved)} == {"meta"}


def test_only_floating_point_tensors_change_their_type() -> None:
    bag = _placed()
    for half in (bag.to(torch.float16), bag.to("cpu", torch.float16), bag.to(dtype=torch.float16)):
        assert half.patches.dtype == torch.float16
        assert isinstance(half.grid, Grid)
        assert (half.grid.cells.dtype, half.mask.dtype) == (torch.int64, torch.bool)
        assert half.grid.shapes == bag.grid.shapes  # type: ignore[union-attr]
    with pytest.raises(TypeError, match=r"^dtype must be a floating-point type, got torch\.int64$"):
        bag.to(torch.int64)


def test_a_detached_bag_leaves_the_graph() -> None:
    patches = torch.ones(1, 2, 3, requires_grad=True)
    assert not Bag(patches * 2).detach().patches.requires_grad


def test_pinned_memory_is_asked_of_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)  # needs a GPU otherwise
    bag = _placed()
    assert torch.equal(bag.pin_memory().patches, bag.patches)
    assert len(pinned) == len(leaves(bag))
