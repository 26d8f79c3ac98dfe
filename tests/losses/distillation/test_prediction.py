"""Distillation of predictions against golden numbers, torch and scipy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from torch.autograd import gradcheck

from disentangled_mil.losses import (
    prediction_distillation,
    representation_distillation,
)
from tests.support.distillation import LINKS, normal
from tests.support.golden import load_golden


@pytest.mark.parametrize("temperature", ["1.0", "2.0", "4.0"])
def test_released_prediction_loss_and_gradient_are_reproduced(temperature):
    case = load_golden(f"prediction_distillation_T{temperature}")
    student = case["student_logits"].requires_grad_()
    loss = prediction_distillation(student, case["teacher_logits"], temperature=case["temperature"].item())
    loss.backward()
    torch.testing.assert_close(loss, case["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(student.grad, case["grad_student_logits"], rtol=0, atol=1e-9)


def test_classes_that_the_teacher_excludes_count_nothing():
    teacher = torch.tensor([[1.0, -torch.inf, 0.5], [0.0, 1.0, -torch.inf]])
    student = torch.tensor([[0.3, -torch.inf, 0.1], [0.2, 0.4, 2.0]], requires_grad=True)
    loss = prediction_distillation(student, teacher, temperature=2.0)
    p, q = (softened.double().div(2).softmax(1) for softened in (teacher, student))
    expected = 4 * torch.from_numpy(rel_entr(p.numpy(), q.detach().numpy())).sum(1).mean()
    torch.testing.assert_close(loss.double(), expected)
    (slope,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(slope.double(), (q - p).detach())


def test_softmax_divergence_equals_torch_batchmean(generator):
    student, logits = normal(generator, 3, 4), normal(generator, 3, 4)
    oracle = 9 * F.kl_div((student / 3).log_softmax(1), (logits / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(prediction_distillation(student, logits, temperature=3.0), oracle)


def test_hazard_divergence_equals_that_of_bernoulli_distributions(generator):
    student, logits = normal(generator, 3, 4), normal(generator, 3, 4)
    p, q = (torch.distributions.Bernoulli(logits=x / 2) for x in (logits, student))
    oracle = 4 * torch.distributions.kl_divergence(p, q).sum(1).mean()
    torch.testing.assert_close(prediction_distillation(student, logits, link="hazards"), oracle)


@settings(max_examples=30)
@given(
    link=st.sampled_from(LINKS),
    batch=st.integers(1, 5),
    outputs=st.integers(2, 5),
    temperature=st.floats(0.5, 5),
    seed=st.integers(0, 10**6),
)
def test_divergence_is_zero_iff_predictions_are_equal(link, batch, outputs, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, logits = normal(generator, batch, outputs), normal(generator, batch, outputs)
    options = {"link": link, "temperature": temperature}
    assert prediction_distillation(student, logits, **options) > 1e-9
    assert prediction_distillation(logits, logits, **options).abs() < 1e-14
    shifted = prediction_distillation(logits + 1, logits, **options)
    assert shifted.abs() < 1e-12 if link == "softmax" else shifted > 1e-9
    order = torch.randperm(batch, generator=generator)
    loss = prediction_distillation(student, logits, **options)
    torch.testing.assert_close(prediction_distillation(student[order], logits[order], **options), loss)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-6])
def test_float32_divergence_of_close_predictions_is_exact_and_never_negative(link, distance, generator):
    logits = 4 * torch.randn(2000, 4, generator=generator)
    student = logits + distance * torch.randn(2000, 4, generator=generator)
    each = torch.func.vmap(lambda x, y: prediction_distillation(x[None], y[None], link=link))(student, logits)
    assert (each >= 0).all()
    exact = prediction_distillation(student.double(), logits.double(), link=link)
    torch.testing.assert_close(each.mean().double(), exact, rtol=2e-3 if distance > 1e-5 else 1, atol=0)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("distance", [0.0, 1e-3, 1.0, 30.0])
def test_float32_divergence_and_gradient_are_those_of_the_textbook_in_float64(link, distance, generator):
    logits = torch.randn(50, 4, generator=generator)
    student = (logits + distance * torch.randn(50, 4, generator=generator)).requires_grad_()
    exact = student.detach().double().requires_grad_()

    def outcomes(x):
        return x.log_softmax(1) if link == "softmax" else torch.stack([F.logsigmoid(x), F.logsigmoid(-x)])

    p, q = outcomes(logits.double() / 2), outcomes(exact / 2)
    expected = 4 * (p.exp() * (p - q)).sum() / len(logits)
    loss = prediction_distillation(student, logits, link=link)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3 if distance < 1e-2 else 1e-5, atol=1e-14)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("link", LINKS)
def test_prediction_gradient_is_exact_and_only_the_students(link, generator):
    student, logits = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 4).requires_grad_()
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    assert gradcheck(lambda x: prediction_distillation(x, logits.detach(), link=link, weight=weight), student)
    prediction_distillation(student, logits, link=link).backward()
    assert student.grad.abs().sum() > 0
    assert logits.grad is None


@pytest.mark.parametrize("link", LINKS)
def test_prediction_loss_of_huge_logits_is_finite(link):
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = prediction_distillation(student, -student, link=link)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(link, dtype, generator):
    student, logits = normal(generator, 3, 4).to(dtype), normal(generator, 3, 4).to(dtype)
    loss = prediction_distillation(student, logits, link=link)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, prediction_distillation(student.float(), logits.float(), link=link))
    slots = representation_distillation(student[None], logits[None])
    assert slots.dtype == torch.float32
    torch.testing.assert_close(slots, F.mse_loss(student.float(), logits.float()))


def test_weights_weigh_samples(generator):
    student, logits = normal(generator, 2, 4), normal(generator, 2, 4)
    alone = [prediction_distillation(student[i : i + 1], logits[i : i + 1]) for i in range(2)]
    loss = prediction_distillation(student, logits, weight=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, (alone[0] + 3 * alone[1]) / 4)


def test_errors_name_the_argument() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"teacher_logits must have shape \[B, K\] = \[2, 4\], got \[2, 3\]"):
        prediction_distillation(logits, logits[:, :3])
    with pytest.raises(ValueError, match=r"student_logits must hold at least one sample, got shape \[0, 4\]"):
        prediction_distillation(logits[:0], logits[:0])
    with pytest.raises(TypeError, match=r"student_logits must be a floating-point tensor, got torch\.int64"):
        prediction_distillation(logits.long(), logits)
    with pytest.raises(TypeError, match=r"teacher_logits must be a floating-point tensor, got torch\.int64"):
        prediction_distillation(logits, logits.long())
    with pytest.raises(ValueError, match=r"link must be one of 'softmax', 'hazards', 'identity', got 'both'"):
        prediction_distillation(logits, logits, link="both")
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got -1"):
        prediction_distillation(logits, logits, temperature=-1)
    with pytest.raises(ValueError, match=r"weight must have shape \[B\] = \[2\], got \[1\]"):
        prediction_distillation(logits, logits, weight=torch.ones(1))
    with pytest.raises(ValueError, match=r"^weight must not be negative, got -1$"):
        prediction_distillation(logits, logits, weight=torch.tensor([1.0, -1.0]))


def test_divergence_of_numbers_is_that_of_normal_distributions():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(teacher, 1.0), normal(student, 1.0)).sum(1).mean()
    for temperature in (1.0, 4.0):
        loss = prediction_distillation(student, teacher, temperature=temperature, link="identity")
        torch.testing.assert_close(loss, expected)
