"""Arguments that a newcomer is likely to pass: each is refused by its name, with the requirement and what came."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from disentangled_mil import (
    Bag,
    CGCOptimizer,
    Classification,
    DistillationTargets,
    Grid,
    PatchEncoder,
    Student,
    SubspaceDistillation,
    Teacher,
    collate_bags,
)
from disentangled_mil.data.planted import planted_cohort
from disentangled_mil.tasks import select_target

SIZES = {"dim": 8, "heads": 2, "groups": 2, "dim_head": 4, "magnifications": ("20x",)}
PATCHES, COORDS = torch.zeros(5, 8), 224 * torch.arange(10).view(5, 2)
TARGETS = DistillationTargets(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))


def student(**options: object) -> Student:
    return Student(8, 3, **SIZES, **options)


def teacher() -> Teacher:
    return Teacher(8, {"tumor": 5, "tme": 7}, 3, selection_heads=2, **SIZES)


def step_of_cgc(confidence: float) -> None:
    pair = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = CGCOptimizer(torch.optim.SGD(pair, lr=1.0), {"tumor": pair[:1], "tme": pair[1:]})
    optimizer.step(confidence={"tumor": confidence, "tme": torch.tensor(confidence)})


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "tensor for bag": (
        lambda: student()({"20x": PATCHES[None]}),
        TypeError,
        "bags['20x'] must be a Bag (Bag.from_slide",
    ),
    "coordinates for grid": (
        lambda: Bag(PATCHES[None], COORDS[None]),
        TypeError,
        "grid must be a Grid or a TokenSet (Bag",
    ),
    "one bag": (lambda: collate_bags(Bag(PATCHES[None])), TypeError, "bags must be an iterable of bags, got Bag"),
    "NaN in slide": (
        lambda: Bag.from_slide(PATCHES / 0),
        ValueError,
        "features must be finite, got NaN or infinity in row 0",
    ),
    "text for step": (lambda: Bag.from_slide(PATCHES, COORDS, step="224"), TypeError, "step must be a number, got str"),
    "shapes of a number": (
        lambda: Grid(torch.zeros(1, 5, 2).long(), torch.ones(1, 5).bool(), (3,)),
        TypeError,
        "shapes must hold (width, height) pairs, got 3",
    ),
    "NaN to fit": (lambda: PatchEncoder(8, 4).fit(PATCHES / 0), ValueError, "patches must be finite to fit, got NaN"),
    "number of classes": (lambda: Classification(4), TypeError, "classes must be a sequence of strings, got int"),
    "one class": (lambda: Classification(["a"]), ValueError, "classes must name at least two classes, got ['a']"),
    "tensor for targets": (
        lambda: SubspaceDistillation()(torch.zeros(2, 3), torch.zeros(2, 2, 8), torch.zeros(2, 3)),
        TypeError,
        "targets must be DistillationTargets, got Tensor",
    ),
    "tensor for vectors": (
        lambda: DistillationTargets.from_teacher(torch.zeros(2, 3), torch.zeros(2, 2, 8)),
        TypeError,
        "features must be a mapping from names, got Tensor",
    ),
    "row of targets": (lambda: TARGETS.select([5]), IndexError, "index must select some of the 3 samples"),
    "row of target": (
        lambda: select_target(torch.zeros(2), [5]),
        IndexError,
        "index must select some of the 2 samples",
    ),
    "text for temperature": (
        lambda: SubspaceDistillation(temperature="2"),
        TypeError,
        "temperature must be a number, got str",
    ),
    "order as list": (lambda: student().reorder("20x", [1, 0]), TypeError, "permutation must be a tensor of shape [S]"),
    "order elsewhere": (
        lambda: student().reorder("5x", torch.tensor([1, 0])),
        ValueError,
        "magnification must be one of '20x', got '5x'",
    ),
    "outputs before genes": (
        lambda: Teacher(1024, 4, {"tumor": 5}),
        TypeError,
        "genes must be a mapping from names of subspaces to numbers of genes, got int",
    ),
    "rule of the gate": (lambda: student(gate="mean"), ValueError, "gate must be one of 'max_confidence', "),
    "genes of two for one bag": (
        lambda: teacher()({"20x": Bag(PATCHES[None])}, {"tumor": torch.zeros(2, 5), "tme": torch.zeros(2, 7)}),
        ValueError,
        "genes['tumor'] must have shape [B, G] = [1, G], got [2, 5]",
    ),
    "NaN confidence": (lambda: step_of_cgc(float("nan")), ValueError, "confidence['tumor'] must be finite, got nan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_likely_mistake_is_refused_by_the_name_of_its_argument(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clinical", {"a": 1}, "clinical must be a pandas DataFrame with a row per patient, got dict"),
        ("expression", {"a": 1}, "expression must be a pandas DataFrame with a row per patient, got dict"),
        ("samples", {"a": 1}, "samples must be a sequence of Sample, got str"),
        ("tasks", {"a": {}}, "tasks['a'] must be a TaskDefinition (Task.define makes one), got dict"),
    ],
)
def test_parts_of_a_cohort_have_their_types(name: str, value: object, message: str) -> None:
    cohort = planted_cohort(4, seed=1, grid=(2, 2), width=4).cohort
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        replace(cohort, **{name: value})
