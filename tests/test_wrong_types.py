"""Every argument of every public function, constructor and forward pass, given values of the wrong type.

A call either accepts a value or refuses it by an error that names the argument, or another one that disagrees with it.
No value of another type ends in an error from the inside, such as an AttributeError.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import disentangled_mil as package
from disentangled_mil import Bag, Classification, DistillationTargets, FileError, Grid, TokenSet

WRONG: dict[str, Any] = {
    "None": None,
    "text": "text",
    "number": 3,
    "fraction": 2.5,
    "list": [1, 2],
    "mapping": {"a": 1},
    "tensor": torch.zeros(3),
    "object": object(),
    "function": len,
}
SIZES = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4}
MODEL = {**SIZES, "magnifications": ("20x",)}
GENES = {"tumor": 3, "tme": 4}
TOKENS, MASK = torch.zeros(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
GRID = Grid.square([4, 4])
ENCODED = {name: torch.zeros(2, 1, 8) for name in GENES}
LOGITS = {name: torch.zeros(2, 3) for name in GENES}
BAGS = {"20x": Bag(torch.zeros(2, 4, 8), GRID)}
TARGETS = DistillationTargets(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool), torch.zeros(2, 2, 8))


def parameters_of_subspaces() -> tuple[torch.optim.Optimizer, dict[str, list[nn.Parameter]]]:
    pair = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.SGD(pair, lr=1.0), {"tumor": pair[:1], "tme": pair[1:]}


# A right call of each: its function and its arguments.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Bag": (Bag, {"patches": TOKENS, "grid": GRID}),
    "Bag.from_slide": (Bag.from_slide, {"features": TOKENS[0], "coords": torch.arange(8).view(4, 2), "step": 2.0}),
    "Bag.empty": (Bag.empty, {"width": 8, "placed": False}),
    "CGCOptimizer": (
        package.CGCOptimizer,
        dict(zip(("optimizer", "subspace_parameters"), parameters_of_subspaces(), strict=True)),
    ),
    "Classification": (Classification, {"classes": ["a", "b"], "class_weight": torch.ones(2)}),
    "Classification.fit": (Classification.fit, {"labels": ["a", "b"], "classes": ["a", "b"], "balanced": True}),
    "ContinuousPositionBias": (package.ContinuousPositionBias, {"hidden": 4, "outputs": 2}),
    "DMSF": (package.DMSF, {"subspaces": ("tumor", "tme"), **SIZES}),
    "DMSF.forward": (package.DMSF(**SIZES), {"patches": TOKENS, "genes": ENCODED, "grid": GRID, "mask": None}),
    "DeformableCrossAttention": (package.DeformableCrossAttention, SIZES),
    "DeformableCrossAttention.forward": (
        package.DeformableCrossAttention(**SIZES),
        {"query": TOKENS, "context": TOKENS, "query_grid": GRID, "context_grid": GRID, "mask": None},
    ),
    "DiscreteSurvival.fit": (
        package.DiscreteSurvival.fit,
        {"time": [1.0, 2.0, 3.0, 4.0], "event": [1, 1, 0, 1], "bins": 2, "alpha": 0.0},
    ),
    "DistillationTargets.from_teacher": (
        DistillationTargets.from_teacher,
        {"logits": torch.zeros(2, 3), "features": {name: torch.zeros(2, 8) for name in GENES}, "shares": LOGITS},
    ),
    "DistillationTargets.select": (TARGETS.select, {"index": torch.tensor([0])}),
    "GeneNetwork": (package.GeneNetwork, {"genes": GENES, "outputs": 3, "dim": 8}),
    "GeneSelection": (package.GeneSelection, {"dim": 8, "heads": 2}),
    "GeneSelection.forward": (package.GeneSelection(8), {"tokens": TOKENS, "genes": ENCODED["tumor"], "mask": MASK}),
    "Grid": (Grid, {"cells": GRID.cells, "mask": MASK, "shapes": GRID.shapes}),
    "Grid.from_coords": (Grid.from_coords, {"coords": torch.arange(16).view(2, 4, 2), "mask": MASK, "step": 2.0}),
    "Grid.from_mask": (Grid.from_mask, {"mask": MASK}),
    "Grid.square": (Grid.square, {"tokens": 4}),
    "ITA": (package.ITA, {"dim": 8, "prototypes": 2}),
    "ITA.forward": (package.ITA(8, 2), {"tokens": TOKENS, "mask": MASK}),
    "LinearModel": (package.LinearModel, {"sizes": {"patches": 8}, "outputs": 3}),
    "MagnificationGate": (package.MagnificationGate, {"magnifications": ["10x", "20x"], "rule": "average"}),
    "MagnificationGate.forward": (
        package.MagnificationGate(["10x", "20x"]),
        {"logits": {"10x": torch.zeros(2, 3), "20x": torch.zeros(2, 3)}},
    ),
    "PatchEncoder": (package.PatchEncoder, {"features": 8, "dim": 4}),
    "PatchEncoder.forward": (package.PatchEncoder(8, 4), {"patches": TOKENS, "mask": MASK}),
    "SNNEncoder": (package.SNNEncoder, {"genes": GENES, "dim": 8}),
    "SNNEncoder.forward": (package.SNNEncoder(GENES, 8), {"genes": {n: torch.zeros(2, c) for n, c in GENES.items()}}),
    "Student": (package.Student, {"features": 8, "outputs": 3, **MODEL}),
    "Student.forward": (package.Student(8, 3, **MODEL), {"bags": BAGS}),
    "SubspaceDistillation": (package.SubspaceDistillation, {}),
    "SubspaceDistillation.forward": (
        package.SubspaceDistillation(),
        {"student_logits": torch.zeros(2, 3), "student_prototypes": torch.zeros(2, 2, 8), "targets": TARGETS},
    ),
    "SubspaceHead": (package.SubspaceHead, {"dim": 8, "outputs": 3, "subspaces": ("tumor", "tme")}),
    "SubspaceHead.forward": (package.SubspaceHead(8, 3), {"features": {name: torch.zeros(2, 8) for name in GENES}}),
    "Teacher": (package.Teacher, {"features": 8, "genes": GENES, "outputs": 3, **MODEL, "selection_heads": 2}),
    "Teacher.forward": (
        package.Teacher(8, GENES, 3, **MODEL, selection_heads=2),
        {"bags": BAGS, "genes": {name: torch.zeros(2, count) for name, count in GENES.items()}},
    ),
    "TokenSet": (TokenSet, {"mask": MASK}),
    "TokenSet.of": (TokenSet.of, {"tokens": [2, 3]}),
    "balance_shares": (package.balance_shares, {"shares": torch.zeros(2, 2, 3)}),
    "batch_similarity_consistency": (
        package.batch_similarity_consistency,
        {"a": torch.rand(2, 1, 3), "b": torch.rand(2, 1, 3)},
    ),
    "collate_bags": (package.collate_bags, {"bags": [Bag(torch.zeros(1, 4, 8))]}),
    "discrete_time_nll": (
        package.discrete_time_nll,
        {"logits": torch.zeros(2, 2), "interval": torch.tensor([0, 1]), "event": torch.tensor([True, False])},
    ),
    "inter_magnification_consistency": (
        package.inter_magnification_consistency,
        {"attention_a": torch.rand(2, 3), "attention_b": torch.rand(2, 3)},
    ),
    "match_prototypes": (
        package.match_prototypes,
        {"prototypes": torch.rand(2, 3, 4), "subspaces": torch.rand(2, 3, 4)},
    ),
    "prediction_distillation": (
        package.prediction_distillation,
        {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), "weight": torch.ones(2)},
    ),
    "representation_distillation": (
        package.representation_distillation,
        {"student": torch.zeros(2, 2, 8), "teacher": torch.zeros(2, 2, 8)},
    ),
    "share_distillation": (
        package.share_distillation,
        {"student_shares": torch.zeros(2, 2, 3), "teacher_shares": torch.zeros(2, 2, 3), "weight": torch.ones(2)},
    ),
    "task_from_state": (package.task_from_state, {"state": Classification(["a", "b"]).state()}),
}
# Values that other code makes, and attention maps, which layers return.
MADE_ELSEWHERE = {
    "CGCReport", "DeformableAttention", "DiscreteSurvival", "DistillationLoss", "DistillationTargets", "FileError",
    "SetAttention", "SurvivalTarget",
}  # fmt: skip


def arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """The arguments of a call: those that are given, and those with a default. PyTorch refuses devices."""
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    names = [name for name, p in signature.parameters.items() if name in given or p.default is not p.empty]
    return [name for name in names if name != "device"]


def test_every_public_name_is_called() -> None:
    assert {name.partition(".")[0] for name in CALLS} | MADE_ELSEWHERE == set(package.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_a_value_of_another_type_is_refused_by_the_name_of_its_argument(name: str) -> None:
    function, given = CALLS[name]
    function(**given)
    assert not foreign_errors(function, given)


def foreign_errors(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """What a call answers to wrong values with errors that name no argument."""
    foreign, names = [], arguments(function, given)
    for argument in names:
        for kind, value in WRONG.items():
            if kind == "function" and callable(given.get(argument)):
                continue
            try:
                function(**{**given, argument: value})
            except (OSError, FileError):  # They name a file.
                continue
            except (TypeError, ValueError, IndexError) as error:
                named = any(re.search(rf"\b{other}\b", str(error)) for other in names)
                if not named and not str(error).startswith(f"{value}: "):  # Errors of a file begin with its path.
                    foreign.append(f"{argument} = {kind}: {type(error).__name__}: {error}")
            except Exception as error:
                foreign.append(f"{argument} = {kind}: {type(error).__name__}: {error}")
    return "\n".join(foreign)
