"""Distillation of representations: the error, its gradient, and the match."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from disentangled_mil.losses import (
    prediction_distillation,
    representation_distillation,
)
from disentangled_mil.ops import match_prototypes
from tests.support.distillation import normal


def test_slot_matching_is_the_mean_squared_error(generator):
    student, vectors = normal(generator, 3, 2, 5), normal(generator, 3, 2, 5)
    torch.testing.assert_close(representation_distillation(student, vectors), F.mse_loss(student, vectors))


@settings(max_examples=25)
@given(
    batch=st.integers(1, 4),
    subspaces=st.integers(1, 4),
    surplus=st.integers(0, 2),
    width=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_matching_finds_shuffled_prototypes_again(batch, subspaces, surplus, width, seed):
    generator = torch.Generator().manual_seed(seed)
    prototypes = normal(generator, batch, subspaces + surplus, width)
    order = torch.stack([torch.randperm(subspaces + surplus, generator=generator)[:subspaces] for _ in range(batch)])
    vectors = prototypes.gather(1, order[..., None].expand(-1, -1, width))
    permutation = match_prototypes(prototypes, vectors)
    assert permutation.dtype == torch.int64
    assert torch.equal(permutation, order)
    assert representation_distillation(prototypes, vectors, matching="hungarian") == 0


def test_matching_takes_the_smallest_total_error_not_the_nearest_first():
    prototypes = torch.tensor([[[0.0], [1.0]]])
    vectors = torch.tensor([[[0.9], [2.0]]])
    assert match_prototypes(prototypes, vectors).tolist() == [[0, 1]]
    loss = representation_distillation(prototypes, vectors, matching="hungarian")
    torch.testing.assert_close(loss, torch.tensor((0.81 + 1.0) / 2))


def test_overflowed_prototypes_keep_their_order_and_make_the_loss_infinite(generator):
    subspaces = torch.randn(2, 2, 3, generator=generator)
    prototypes = subspaces.flip(1).clone()
    prototypes[0, 1, 0] = math.inf
    assert match_prototypes(prototypes, subspaces).tolist() == [[0, 1], [1, 0]]
    assert representation_distillation(prototypes, subspaces, matching="hungarian").item() == math.inf


@pytest.mark.parametrize("matching", ["slot", "hungarian"])
def test_representation_gradient_is_exact_and_only_the_students(matching, generator):
    student, vectors = (
        normal(generator, 3, 2, 4).requires_grad_(),
        normal(generator, 3, 2, 4).requires_grad_(),
    )
    weight = torch.tensor([1.0, 0.0, 3.0])
    assert gradcheck(
        lambda x: representation_distillation(x, vectors.detach(), matching=matching, weight=weight), student
    )
    representation_distillation(student, vectors, matching=matching).backward()
    assert vectors.grad is None


@pytest.mark.parametrize("absent", [math.nan, math.inf])
def test_rows_of_weight_zero_reach_neither_loss_nor_gradient(absent, generator):
    student, logits = normal(generator, 3, 2, 4).requires_grad_(), normal(generator, 3, 2, 4)
    logits[1] = absent
    weight = torch.tensor([1, 0, 1])
    kept = [0, 2]
    loss = prediction_distillation(student[:, 0], logits[:, 0], weight=weight)
    torch.testing.assert_close(loss, prediction_distillation(student[kept, 0], logits[kept, 0]))
    mse = representation_distillation(student, logits, matching="hungarian", weight=weight)
    torch.testing.assert_close(mse, representation_distillation(student[kept], logits[kept], matching="hungarian"))
    (loss + mse).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[1] == 0).all()
    assert (student.grad[kept] != 0).any()


def test_errors_name_the_argument() -> None:
    vectors = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"teacher must have shape \[B, S, C\] = \[2, 3, 5\], got \[2, 2, 5\]"):
        representation_distillation(vectors, vectors[:, :2])
    with pytest.raises(ValueError, match=r"matching must be one of 'slot', 'hungarian', got 'greedy'"):
        representation_distillation(vectors, vectors, matching="greedy")
    with pytest.raises(TypeError, match=r"teacher must be a floating-point tensor, got torch\.int64"):
        representation_distillation(vectors, vectors.long())
