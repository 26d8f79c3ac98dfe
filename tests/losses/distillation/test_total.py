"""The whole distillation loss: its parts, samples without a teacher, options."""

import math

import pytest
import torch

from disentangled_mil.losses import (
    SubspaceDistillation,
    prediction_distillation,
    representation_distillation,
)
from disentangled_mil.ops import match_prototypes
from tests.support.distillation import LINKS, normal, teacher


@pytest.mark.parametrize("matching", ["slot", "hungarian"])
@pytest.mark.parametrize("link", LINKS)
def test_module_adds_its_two_weighted_parts(link, matching, generator):
    distil = SubspaceDistillation(
        link, temperature=3.0, prediction_weight=0.5, representation_weight=2.0, matching=matching
    )
    targets = teacher(generator)
    logits, prototypes = normal(generator, 3, 4), normal(generator, 3, 2, 5)
    loss = distil(logits, prototypes, targets)
    torch.testing.assert_close(
        loss.prediction, prediction_distillation(logits, targets.logits, temperature=3.0, link=link)
    )
    torch.testing.assert_close(
        loss.representation, representation_distillation(prototypes, targets.subspaces, matching=matching)
    )
    torch.testing.assert_close(loss.total, 0.5 * loss.prediction + 2 * loss.representation)
    expected = (
        match_prototypes(prototypes, targets.subspaces) if matching == "hungarian" else torch.tensor([[0, 1]] * 3)
    )
    assert torch.equal(loss.permutation, expected)


def test_more_prototypes_than_subspaces_are_matched(generator):
    targets = teacher(generator)
    prototypes = torch.cat([normal(generator, 3, 1, 5), targets.subspaces.flip(1)], dim=1)
    loss = SubspaceDistillation(matching="hungarian")(targets.logits, prototypes, targets)
    assert loss.permutation.tolist() == [[2, 1]] * 3
    assert loss.total < 1e-12


def test_samples_without_a_teacher_take_no_part(generator):
    present = torch.tensor([True, False, True])
    targets = teacher(generator, present=present)
    logits, prototypes = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 2, 5).requires_grad_()
    loss = SubspaceDistillation()(logits, prototypes, targets)
    alone = SubspaceDistillation()(logits[present], prototypes[present], targets.select(present))
    torch.testing.assert_close(loss.total, alone.total)
    loss.total.backward()
    assert (logits.grad[1] == 0).all()
    assert (prototypes.grad[1] == 0).all()


def test_a_batch_without_any_teacher_gives_zero_with_a_gradient_path(generator):
    targets = teacher(generator, present=torch.zeros(3, dtype=torch.bool))
    logits, prototypes = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 2, 5).requires_grad_()
    loss = SubspaceDistillation()(logits, prototypes, targets)
    loss.total.backward()
    assert loss.total == 0
    assert (logits.grad == 0).all()
    assert (prototypes.grad == 0).all()


def test_repr_shows_the_options():
    assert repr(SubspaceDistillation("hazards", temperature=1.5)) == (
        "SubspaceDistillation(link='hazards', temperature=1.5, prediction_weight=0.01, "
        "representation_weight=0.01, share_weight=0.0, matching='slot')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "sigmoid"}, r"link must be one of 'softmax', 'hazards', 'identity', got 'sigmoid'"),
        ({"temperature": 0.0}, r"temperature must be positive and finite, got 0\.0"),
        ({"temperature": math.inf}, r"temperature must be positive and finite, got inf"),
        ({"prediction_weight": -1.0}, r"prediction_weight must lie in \[0\.0, inf\], got -1\.0"),
        ({"representation_weight": -1.0}, r"representation_weight must lie in \[0\.0, inf\], got -1\.0"),
        ({"matching": "greedy"}, r"matching must be one of 'slot', 'hungarian', got 'greedy'"),
    ],
)
def test_module_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SubspaceDistillation(**options)


def test_module_refuses_inputs_that_do_not_fit(generator):
    targets = teacher(generator)
    logits, prototypes = torch.zeros(3, 4), torch.zeros(3, 3, 5)
    with pytest.raises(ValueError, match=r"targets\.present must have shape \[B\] = \[2\], got \[3\]"):
        SubspaceDistillation()(logits[:2], prototypes, targets)
    with pytest.raises(
        ValueError, match=r"student_prototypes must have shape \[B, P, C\] = \[3, P, C\], got \[2, 3, 5\]"
    ):
        SubspaceDistillation()(logits, prototypes[:2], targets)
    with pytest.raises(
        ValueError, match=r"targets\.subspaces must have shape \[B, S, C\] = \[3, 3, 5\], got \[3, 2, 5\]"
    ):
        SubspaceDistillation(matching="slot")(logits, prototypes, targets)


def test_slot_distillation_compiles_as_one_graph(generator):
    distil = SubspaceDistillation("hazards", matching="slot")
    targets = teacher(generator, present=torch.tensor([True, False, True]))
    logits, prototypes = normal(generator, 3, 4), normal(generator, 3, 2, 5)
    compiled = torch.compile(distil, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, prototypes, targets).total, distil(logits, prototypes, targets).total)
