"""Bags, grids and targets behave as collections of tensors do."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from disentangled_mil import (
    Bag,
    DiscreteSurvival,
    DistillationTargets,
    Grid,
    SurvivalTarget,
    Teacher,
    TokenSet,
    collate_bags,
)
from tests.support.trees import leaves
from tests.test_docs import DOCS, blocks


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


COLLECTIONS = ["bag", "set", "grid", "token set", "survival target", "distillation targets"]


@pytest.mark.parametrize("name", COLLECTIONS)
def test_values_move_without_waiting(name: str) -> None:
    moved = VALUES[name]().to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in leaves(moved)} == {"meta"}


@pytest.mark.parametrize("name", [name for name in VALUES if name.startswith("output")])
def test_outputs_are_taken_apart_to_the_last_tensor(name: str) -> None:
    output: Any = VALUES[name]()
    moved = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), output)
    assert type(moved) is type(output)
    assert {tensor.device.type for tensor in leaves(moved)} == {"meta"}
    assert all(leaf.grad_fn is None for leaf in leaves(tree_map_only(Tensor, Tensor.detach, output)))
    for attention in output.branches["20x"].attention.values():
        assert attention.mass_sums.grad_fn is not None
        assert not any(leaf.requires_grad for leaf in leaves(attention.detach()))
        assert {leaf.device.type for leaf in leaves(attention.to("meta"))} == {"meta"}
        assert attention.detach().nbytes == attention.nbytes > 0


@pytest.mark.parametrize("name", COLLECTIONS)
def test_a_copy_shares_no_memory(name: str) -> None:
    value = VALUES[name]()
    for one, other in zip(leaves(value.to("cpu", copy=True)), leaves(value), strict=True):
        assert one.data_ptr() != other.data_ptr()
        assert torch.equal(one, other)
    for one, other in zip(leaves(value.to("cpu")), leaves(value), strict=True):
        assert one is other


def test_a_type_that_is_no_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"^dtype must be a torch\.dtype, got str$"):
        _placed().to("cpu", "float16")  # type: ignore[arg-type]


BATCHES = {
    "placed bags": lambda: collate_bags([_placed(), Bag.from_slide(torch.ones(1, 4), torch.zeros(1, 2)), _placed()]),
    "sets": lambda: collate_bags([Bag.from_slide(torch.ones(n, 4)) for n in (3, 1, 2)]),
    "grid": lambda: Grid.square([4, 9, 2]),
    "token set": lambda: TokenSet.of([2, 3, 1]),
    "survival target": lambda: SurvivalTarget(torch.arange(3), torch.tensor([True, False, True])),
    "targets": lambda: DistillationTargets.from_teacher(torch.randn(3, 2)),
    "targets with shares": lambda: DistillationTargets.from_teacher(
        torch.randn(3, 2), shares={"tumor": torch.ones(3, 2)}
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_values_are_made_from_their_tensors_again(name: str) -> None:
    value = BATCHES[name]()
    again = type(value).from_dict(value.to_dict())
    for one, other in zip(leaves(again), leaves(value), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BATCHES)
def test_a_tensordict_moves_and_slices_values(name: str) -> None:
    tensordict = pytest.importorskip("tensordict", reason="needs the package tensordict")
    value = BATCHES[name]()
    together = tensordict.TensorDict({"value": value.to_dict(), "row": torch.arange(3)}, batch_size=[3])
    assert {leaf.device.type for leaf in together.to("meta").values(True, True)} == {"meta"}
    assert torch.equal(together[1:]["row"], torch.tensor([1, 2]))
    part = type(value).from_dict(together[1:]["value"])
    for taken, every in zip(leaves(part.to_dict()), leaves(value.to_dict()), strict=True):
        assert torch.equal(taken, every[1:])
    if isinstance(value, Bag) and isinstance(value.grid, Grid):
        assert part.grid.shapes == value.grid.shapes[1:]


def test_the_documented_example_takes_two_of_the_bags() -> None:
    names = {
        "TensorDict": pytest.importorskip("tensordict", reason="needs the package tensordict").TensorDict,
        "Bag": Bag,
        "SurvivalTarget": SurvivalTarget,
        "bags": collate_bags([_placed()] * 3),
        "target": SurvivalTarget(torch.arange(3), torch.tensor([True, False, True])),
    }
    (code,) = (code for code in blocks(DOCS / "recipes" / "other_packages.md", "text") if "TensorDict" in code)
    exec(code.replace("cuda", "cpu"), names)
    assert len(names["bags"]) == 2
    assert names["target"].interval.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("kind", "parts", "error", "message"),
    [
        (Bag, [1], TypeError, "parts must be a mapping from names to tensors, got list"),
        (Bag, {}, ValueError, "parts must have the names patches, grid, got none"),
        (Bag, {"patches": torch.ones(1, 2, 3), "grid": 3}, TypeError, "grid must be a mapping from names to tensors"),
        (Grid, {"mask": torch.ones(1, 2)}, ValueError, "parts must have the names cells, mask, sizes, got mask"),
        (TokenSet, {"mask": torch.ones(1, 2) > 0, "cells": 3}, ValueError, "parts must have the names mask, got mask"),
        (Grid, {"cells": torch.zeros(1, 1, 2), "mask": torch.ones(1, 1) > 0}, TypeError, "sizes must be a tensor of"),
    ],
)
def test_parts_that_make_no_value_are_named(kind: Any, parts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        kind.from_dict(parts)


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
