import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from disentangled_mil.ops.hazards import log_survival, outcome_log_probability, risk
from tests.support.golden import load_golden

FUNCTIONS = [log_survival, outcome_log_probability, risk]


def test_survival_and_outcomes_equal_hand_computed_values():
    hazards = torch.tensor([0.5, 0.2, 0.75], dtype=torch.float64)
    logits = hazards.logit()
    torch.testing.assert_close(log_survival(logits).exp(), torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64))
    outcomes = torch.tensor([0.5, 0.1, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(outcome_log_probability(logits).exp(), outcomes)
    torch.testing.assert_close(risk(logits), torch.tensor(-1.0, dtype=torch.float64))


@settings(max_examples=30)
@given(batch=st.integers(1, 4), intervals=st.integers(1, 6), seed=st.integers(0, 10**6), scale=st.floats(0.1, 20))
def test_outcomes_are_a_distribution_and_agree_with_products_of_probabilities(batch, intervals, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, intervals, generator=generator, dtype=torch.float64)
    survival = torch.cumprod(torch.sigmoid(-logits), dim=1)
    entered = torch.cat([torch.ones(batch, 1, dtype=torch.float64), survival[:, :-1]], dim=1)
    outcomes = torch.cat([torch.sigmoid(logits) * entered, survival[:, -1:]], dim=1)
    torch.testing.assert_close(outcome_log_probability(logits).exp().sum(1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(outcome_log_probability(logits).exp(), outcomes)
    torch.testing.assert_close(log_survival(logits).exp(), survival)
    torch.testing.assert_close(risk(logits), -survival.sum(1))
    assert (risk(logits + 1) >= risk(logits)).all()


@pytest.mark.parametrize("branch", ["tea10", "tea20", "teas"])
def test_released_survival_and_risk_are_reproduced(branch):
    case = load_golden("teacher_two_magnifications")
    logits = case[f"logits/logits_{branch}"]
    torch.testing.assert_close(log_survival(logits).exp(), case[f"survival/S_{branch}"], rtol=0, atol=1e-6)
    torch.testing.assert_close(risk(logits), case[f"risk/risk_{branch}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_exact(function, generator):
    logits = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, logits)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(function, dtype, generator):
    logits = torch.randn(3, 4, generator=generator).to(dtype)
    assert function(logits).dtype == torch.float32
    torch.testing.assert_close(function(logits), function(logits.float()), rtol=0, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_huge_logits_stay_finite(function):
    logits = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    out = function(logits)
    out.sum().backward()
    assert out.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_logits_without_an_interval_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"logits must have shape \[\.\.\., K\] with K >= 1, got"):
        function(torch.zeros(shape))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_integer_logits_are_refused(function):
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        function(torch.zeros(2, 3, dtype=torch.int64))
