import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disentangled_mil.losses import discrete_time_nll
from disentangled_mil.tasks import DiscreteSurvival, SurvivalTarget


def test_edges_are_quantiles_of_the_uncensored_times(generator):
    time = 100 * torch.rand(40, generator=generator, dtype=torch.float64)
    event = torch.rand(40, generator=generator) < 0.6
    task = DiscreteSurvival.fit(time, event=event, bins=4, alpha=0.1)
    np.testing.assert_allclose(task.edges.numpy(), np.quantile(time[event].numpy(), [0.25, 0.5, 0.75]))
    assert (task.outputs, task.alpha) == (4, 0.1)
    interval = task.target(time, event=event).interval[event]
    assert torch.bincount(interval).diff().abs().max() <= 1


def test_intervals_are_closed_below_and_open_at_both_ends():
    task = DiscreteSurvival(torch.tensor([1.0, 2.5]))
    target = task.target([0.0, 0.99, 1.0, 2.5, 1e9], event=[1, 0, 1.0, True, False])
    assert target.interval.tolist() == [0, 0, 1, 2, 2]
    assert target.event.tolist() == [True, False, True, True, False]
    assert (target.interval.dtype, target.event.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize(
    "turn",
    [
        lambda values: dict(enumerate(values)).values(),
        lambda values: (value for value in values),
        lambda values: iter(values),
        lambda values: map(float, values),
        tuple,
        np.array,
        torch.tensor,
        lambda values: torch.tensor(values).bfloat16(),
        lambda values: pd.Series(values, index=[7, 1, 4, 0, 2]),
    ],
)
def test_times_and_events_come_from_any_iterable(turn):
    time, event = [1.0, 2.0, 3.0, 4.0, 9.0], [1, 1, 1, 1, 0]
    task, expected = DiscreteSurvival.fit(turn(time), event=turn(event)), DiscreteSurvival.fit(time, event=event)
    assert task.edges.tolist() == expected.edges.tolist()
    got, wanted = task.target(turn(time), event=turn(event)), expected.target(time, event=event)
    assert torch.equal(got.interval, wanted.interval)
    assert torch.equal(got.event, wanted.event)


def test_one_interval_is_a_task_too():
    task = DiscreteSurvival.fit([3.0, 4.0], event=[1, 0], bins=1)
    assert task.outputs == 1
    target = task.target([3.0, 4.0], event=[1, 0])
    loss = task.loss(torch.zeros(2, 1), target)
    torch.testing.assert_close(loss, torch.tensor(math.log(2.0)))


def test_survival_loss_is_the_likelihood_with_the_tasks_alpha(generator):
    task = DiscreteSurvival(torch.tensor([1.0, 2.0]), alpha=0.4)
    logits = torch.randn(3, 3, generator=generator)
    target = task.target([0.5, 1.5, 5.0], event=[1, 0, 0])
    expected = discrete_time_nll(logits, target.interval, event=target.event, alpha=0.4)
    torch.testing.assert_close(task.loss(logits, target), expected, rtol=0, atol=0)


def test_survival_confidence_is_the_likelihood_of_what_was_observed():
    task = DiscreteSurvival(torch.tensor([1.0]), alpha=0.9)
    logits = torch.tensor([[0.2, 0.6], [0.2, 0.6]]).logit().requires_grad_()
    target = SurvivalTarget(torch.tensor([1, 1]), torch.tensor([True, False]))
    confidence = task.confidence({"tumor": logits, "tme": torch.zeros(2, 2)}, target)
    torch.testing.assert_close(confidence["tumor"], torch.tensor(0.8 * 0.6 + 0.8 * 0.4))
    torch.testing.assert_close(confidence["tme"], torch.tensor(0.5))
    assert not confidence["tumor"].requires_grad


@settings(max_examples=30)
@given(patients=st.integers(2, 30), bins=st.integers(1, 6), repeats=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_fitted_intervals_all_hold_an_event_and_too_few_times_are_refused(patients, bins, repeats, seed):
    generator = torch.Generator().manual_seed(seed)
    time = torch.randint(1 + patients // repeats, (patients,), generator=generator).double()
    event = torch.rand(patients, generator=generator) < 0.7
    if len(time[event].unique()) < bins or not event.any():
        with pytest.raises(ValueError, match="event"):
            DiscreteSurvival.fit(time, event=event, bins=bins)
        return
    time[event] = torch.arange(event.sum()).double()
    task = DiscreteSurvival.fit(time, event=event, bins=bins)
    interval = task.target(time, event=event).interval
    assert set(interval[event].tolist()) == set(range(bins))
    order = time.argsort()
    assert (interval[order].diff() >= 0).all()


@pytest.mark.parametrize("each", [1, 2, 7])
@pytest.mark.parametrize("bins", range(2, 60))
def test_edges_that_are_times_of_events_are_not_rounded(bins, each):
    last = each * bins
    task = DiscreteSurvival.fit(range(last + 1), event=[1] * (last + 1), bins=bins)
    assert task.edges.tolist() == [*range(each, last, each)]


@pytest.mark.parametrize(
    ("edges", "options", "message"),
    [
        (torch.zeros(2, 2), {}, r"edges must have shape \[E\], got \[2, 2\]"),
        (torch.tensor([1.0, 1.0]), {}, r"edges must increase strictly, got \[1\.0, 1\.0\]"),
        (torch.tensor([-1.0, 1.0]), {}, r"edges must be finite and not negative, got \[-1\.0, 1\.0\]"),
        (torch.tensor([1.0, math.inf]), {}, r"edges must be finite and not negative, got \[1\.0, inf\]"),
        (torch.tensor([1.0]), {"alpha": 1.5}, r"alpha must lie in \[0\.0, 1\.0\], got 1\.5"),
    ],
)
def test_survival_refuses_bad_arguments(edges, options, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSurvival(edges, **options)


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([1.0, -2.0], [1, 1], r"time must be finite and not negative, got -2\.0 at position 1"),
        ([math.nan, 2.0], [1, 1], r"time must be finite and not negative, got nan at position 0"),
        ([1.0, math.inf], [1, 1], r"time must be finite and not negative, got inf at position 1"),
        ([1.0, 2.0], [1, 2], r"event must be 0 \(censored\) or 1 \(event observed\), got 2\.0 at position 1"),
        ([1.0, 2.0], [1, math.nan], r"event must be 0 .* got nan at position 1"),
        ([1.0, 2.0], [1], r"event must have one entry for each of the 2 times, got 1"),
        ([[1.0, 2.0]], [1], r"time must have shape \[B\], got \[1, 2\]"),
        *((scalar, [1], r"time must have shape \[B\], got \[\]") for scalar in (1.0, np.array(1.0), torch.tensor(1.0))),
        ({1.0: 2.0}, [1], r"time must have shape \[B\], got \[\]"),
        ([1.0, 2.0], ["Dead", "Alive"], r"event must hold numbers: .*'Dead'"),
    ],
)
def test_survival_refuses_observations_that_cannot_be(time, event, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSurvival(torch.tensor([1.0])).target(time, event=event)
    with pytest.raises(ValueError, match=message):
        DiscreteSurvival.fit(time, event=event)


@pytest.mark.parametrize("dtype", ["timedelta64[D]", "datetime64[D]", "complex128"])
def test_survival_refuses_what_is_no_real_number(dtype):
    with pytest.raises(TypeError, match=rf"time must hold numbers, got {re.escape(dtype)}"):
        DiscreteSurvival.fit(np.array([1, 2]).astype(dtype), event=[1, 1])


def test_survival_refuses_what_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"event must hold an observed event, got 2 censored times"):
        DiscreteSurvival.fit([1.0, 2.0], event=[0, 0])
    with pytest.raises(
        ValueError, match=r"bins must leave no interval without an event, got bins = 2 with edges \[5\.0\]"
    ):
        DiscreteSurvival.fit([5.0, 5.0], event=[1, 1], bins=2)
    with pytest.raises(
        ValueError,
        match=r"^bins must be at most the number of observed events, 2, got 1000000000000: set bins to 2 or less$",
    ):
        DiscreteSurvival.fit([5.0, 6.0, 7.0], event=[1, 1, 0], bins=10**12)
    with pytest.raises(ValueError, match=r"bins must be at least 1, got 0"):
        DiscreteSurvival.fit([5.0], event=[1], bins=0)


def test_survival_refuses_logits_that_do_not_fit():
    task = DiscreteSurvival(torch.tensor([1.0]))
    target = task.target([0.5], event=[1])
    with pytest.raises(ValueError, match=r"logits must have shape \[B, K\] = \[B, 2\], got \[1, 3\]"):
        task.loss(torch.zeros(1, 3), target)
    with pytest.raises(
        ValueError, match=r"subspace_logits\['tumor'\] must have shape \[B, K\] = \[B, 2\], got \[1, 3\]"
    ):
        task.confidence({"tumor": torch.zeros(1, 3)}, target)


def test_alpha_of_another_type_of_number_is_kept_in_json():
    state = DiscreteSurvival(torch.tensor([1.0]), alpha=np.float32(0.25)).state()
    assert json.loads(json.dumps(state))["alpha"] == 0.25
