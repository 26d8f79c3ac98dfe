import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from disentangled_mil.losses import discrete_time_nll
from tests.support.golden import load_golden


@pytest.mark.parametrize("name", ["alpha0.0", "alpha0.15", "alpha0.4"])
def test_released_loss_and_gradient_are_reproduced(name):
    case = load_golden(f"discrete_time_nll_{name}")
    logits = case["logits"].requires_grad_()
    loss = discrete_time_nll(logits, case["interval"], event=case["censored"] == 0, alpha=case["alpha"].item())
    loss.backward()
    torch.testing.assert_close(loss, case["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(logits.grad, case["grad_logits"], rtol=0, atol=1e-9)


def test_loss_equals_hand_computed_values():
    logits = torch.tensor([[0.5, 0.2], [0.5, 0.2]], dtype=torch.float64).logit()
    interval, event = torch.tensor([1, 1]), torch.tensor([1, 0])
    expected = -torch.tensor([0.5 * 0.2, 0.5 * 0.8], dtype=torch.float64).log()
    torch.testing.assert_close(discrete_time_nll(logits, interval, event=event, reduction="none"), expected)
    torch.testing.assert_close(discrete_time_nll(logits, interval, event=event, reduction="sum"), expected.sum())
    torch.testing.assert_close(discrete_time_nll(logits, interval, event=event), expected.mean())
    down_weighted = discrete_time_nll(logits, interval, event=event, alpha=0.25, reduction="none")
    torch.testing.assert_close(down_weighted, expected * torch.tensor([1, 0.75]))


@settings(max_examples=30)
@given(batch=st.integers(1, 5), intervals=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_loss_is_the_binary_cross_entropy_of_every_interval_entered(batch, intervals, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, intervals, generator=generator, dtype=torch.float64)
    interval = torch.randint(intervals, (batch,), generator=generator)
    event = torch.rand(batch, generator=generator) < 0.5
    steps = torch.arange(intervals)
    died = (event[:, None] & (steps == interval[:, None])).double()
    entered = steps <= interval[:, None]
    oracle = (F.binary_cross_entropy_with_logits(logits, died, reduction="none") * entered).sum(1)
    loss = discrete_time_nll(logits, interval, event=event, reduction="none")
    torch.testing.assert_close(loss, oracle)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(
        discrete_time_nll(logits[order], interval[order], event=event[order]),
        oracle.mean(),
        rtol=1e-9,
        atol=1e-12,
    )


def test_gradient_is_exact(generator):
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    interval, event = torch.tensor([0, 1, 2, 2]), torch.tensor([True, False, True, False])
    assert gradcheck(lambda x: discrete_time_nll(x, interval, event=event, alpha=0.3), logits)


@pytest.mark.parametrize("size", [50.0, 1e4])
def test_a_sure_and_wrong_prediction_keeps_a_finite_gradient_that_is_not_zero(size):
    logits = torch.tensor([[-size, -size], [size, size], [size, -size]], requires_grad=True)
    loss = discrete_time_nll(logits, torch.tensor([1, 1, 1]), event=torch.tensor([True, False, True]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().amax(1) > 0.3).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, generator):
    logits = torch.randn(3, 4, generator=generator).to(dtype)
    arguments = torch.tensor([0, 3, 2], dtype=torch.int32), torch.tensor([1.0, 0.0, 1.0])
    loss = discrete_time_nll(logits, arguments[0], event=arguments[1])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, discrete_time_nll(logits.float(), arguments[0], event=arguments[1]))


def test_errors_name_the_argument():
    logits, interval, event = torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"logits must have shape \[B, K\], got \[4\]"):
        discrete_time_nll(logits[0], interval, event=event)
    with pytest.raises(ValueError, match=r"interval must have shape \[B\] = \[2\], got \[1\]"):
        discrete_time_nll(logits, interval[:1], event=event)
    with pytest.raises(ValueError, match=r"event must have shape \[B\] = \[2\], got \[1\]"):
        discrete_time_nll(logits, interval, event=event[:1])
    with pytest.raises(ValueError, match=r"logits must hold at least one sample, got shape \[0, 4\]"):
        discrete_time_nll(logits[:0], interval[:0], event=event[:0])
    with pytest.raises(TypeError, match=r"interval must be an integer tensor, got torch\.float32"):
        discrete_time_nll(logits, interval.float(), event=event)
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        discrete_time_nll(logits.long(), interval, event=event)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0\.0, 1\.0\], got 2"):
        discrete_time_nll(logits, interval, event=event, alpha=2)
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean', 'sum', 'none', got 'max'"):
        discrete_time_nll(logits, interval, event=event, reduction="max")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_an_event_of_any_type_is_a_death_if_it_is_1(dtype, generator):
    logits = torch.randn(3, 4, generator=generator)
    interval, event = torch.tensor([0, 3, 2]), torch.tensor([True, False, True])
    loss = discrete_time_nll(logits, interval, event=event.to(dtype))
    torch.testing.assert_close(loss, discrete_time_nll(logits, interval, event=event), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("event", "got"), [([0.0, 0.5], "0.5"), ([1.0, math.nan], "nan"), ([0, 2], "2"), ([1, -1], "-1")]
)
def test_what_is_neither_death_nor_censored_is_refused_or_makes_the_loss_nan(event, got):
    logits, interval = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=rf"event must be 0 \(censored\) or 1 \(event observed\), got {got} at position 1"
    ):
        discrete_time_nll(logits, interval, event=torch.tensor(event))

    def each(x, k, e):  # reads no values, like a GPU
        return discrete_time_nll(x[None], k[None], event=e[None])

    arguments = logits, interval, torch.tensor(event)
    assert torch.func.vmap(each)(*arguments).isnan().tolist() == [False, True]
    gradient = torch.func.vmap(torch.func.grad(each))(*arguments)
    assert gradient.isnan().any(1).tolist() == [False, True]


@pytest.mark.parametrize("interval", [[0, -1], [0, 4], [0, -100]])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match=rf"interval must be an index from 0 to 3, got {interval[1]} at position 1"):
        discrete_time_nll(torch.zeros(2, 4), torch.tensor(interval), event=torch.tensor([True, False]))


def test_loss_compiles_as_one_graph(generator):
    logits = torch.randn(3, 4, generator=generator)
    arguments = torch.tensor([0, 3, 2]), torch.tensor([True, False, True])
    compiled = torch.compile(
        lambda x, k, e: discrete_time_nll(x, k, event=e, alpha=0.1), fullgraph=True, backend="aot_eager"
    )
    expected = discrete_time_nll(logits, arguments[0], event=arguments[1], alpha=0.1)
    torch.testing.assert_close(compiled(logits, *arguments), expected)
